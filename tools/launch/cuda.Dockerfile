# Image of GPU hosts, which training and evaluation run in: docker build -f tools/launch/cuda.Dockerfile -t optiml-jax:cuda .
# The wheels of jax bring CUDA and cuDNN; the host needs NVIDIA's driver (580 or later) and container toolkit.
FROM python:3.12-slim-bookworm

WORKDIR /optiml-jax
COPY . .
RUN pip install --no-cache-dir -e ".[cuda,hub]" \
    && useradd --create-home --uid 1000 optiml

USER 1000
CMD ["python", "-m", "optiml_jax.train", "--help"]
