#!/usr/bin/env bash
# Sets up .venv, instruction-tunes a small OPT on the sample tasks and evaluates it. Further arguments go to the command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""
exec .venv/bin/python -m optiml_jax.train --gin_file=tiny.gin "$@"
