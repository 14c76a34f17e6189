#!/usr/bin/env bash
# The quick form of the small study, from data to report, in less than an hour on two CPU cores:
#   tools/small_study/run.sh DATA_DIR TOKENIZER [FOLDER]
# DATA_DIR holds super_natural_instructions; everything is written below FOLDER (runs). Run again, it resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data_dir=$1 tokenizer=$2 folder=${3:-runs}
study=$folder/small_study
python=${PYTHON:-.venv/bin/python}
mkdir -p "$study"
common=(--gin.CACHE_DIR="$study/cache" --gin.TOKENIZER="$tokenizer")
started=$(date +%s)
$python -m tools.small_study.data --data_dir="$data_dir" --output="$study/data"
$python -m optiml_jax.train --gin_file=experiments/small_study_text.gin --gin.DATA_DIR="$study/data" \
    --gin.MODEL_DIR="$study/text" "${common[@]}"
$python -m tools.cache_tasks --mixture=small_study --suite=small_study --data_dir="$study/data" --cache_dir="$study/cache" \
    --tokenizer="$tokenizer"
$python -m tools.run_sweep experiments/small --seeds=3 --output="$folder" --gin.INIT_WEIGHTS="$study/text" "${common[@]}"
$python -m tools.small_study.report --runs="$folder/small" --output="$study/report"
echo "$(( ($(date +%s) - started) / 60 )) minutes in all"
