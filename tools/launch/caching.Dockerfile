# Image of hosts that read raw data, with seqio and Beam: docker build -f tools/launch/caching.Dockerfile -t optiml-jax:caching .
# The versions are those of requirements.txt, which the tests run with.
FROM python:3.11-slim-bookworm

WORKDIR /optiml-jax
COPY . .
RUN pip install --no-cache-dir -r requirements.txt -e ".[tasks,hub]" \
    && useradd --create-home --uid 1000 optiml

USER 1000
CMD ["python", "-m", "tools.cache_tasks", "--help"]
