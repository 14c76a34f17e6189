#!/usr/bin/env bash
# The engine's tests as a GPU machine would run it: Python 3.12, the newest jax that the package takes, and neither torch
# nor seqio nor TensorFlow; in .venv-engine. Further arguments go to pytest. Without a Python 3.12 it says so and ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3.12}"
if [ ! -x .venv-engine/bin/python ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
        echo "the engine is not tested on Python 3.12: none found; set PYTHON=/path/to/python3.12" >&2
        exit 0
    fi
    "$python" -m venv .venv-engine
fi
echo "installing into .venv-engine"
# jinja2, pyyaml and Beam read and cache the sample tasks that some of these tests train on.
.venv-engine/bin/python -m pip install --quiet --disable-pip-version-check -e . \
    pytest pytest-xdist hypothesis jinja2 pyyaml apache-beam==2.77.0 jax-triton==0.4.1 triton==3.9.0
.venv-engine/bin/python -c 'import jax, sys; print("Python", sys.version.split()[0], "jax", jax.__version__)'
# What needs an oracle of tools/test.sh (torch, statsmodels, rouge-score) is not here.
exec .venv-engine/bin/python -m pytest -n 2 --dist loadfile -p no:cacheprovider \
    tests/model/test_{attention,block,head,lookup,triton_kernels}.py tests/data tests/training tests/planning \
    tests/inference/test_prefix_sharing.py tests/checkpoints/test_checkpoints.py \
    tests/evaluation --ignore=tests/evaluation/scores/test_comparison.py --ignore=tests/evaluation/metrics/test_metrics.py \
    --ignore=tests/evaluation/metrics/test_porter.py --ignore=tests/evaluation/scores/test_trace.py \
    --ignore=tests/evaluation/scores/test_intervals.py --ignore=tests/evaluation/scores/test_significance.py "$@"
