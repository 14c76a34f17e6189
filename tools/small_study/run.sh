#!/usr/bin/env bash
# The small study, from data to report:
#   tools/small_study/run.sh DATA_DIR TOKENIZER [FOLDER [quick|full]]
# DATA_DIR holds super_natural_instructions, and pretrain_text for the full study. Everything is written below FOLDER
# (runs). Run again, it resumes. The quick study took 53 minutes on two CPU cores; the full one is for a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data_dir=$1 tokenizer=$2 folder=${3:-runs} size=${4:-quick}
study=$folder/small_study
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python
mkdir -p "$study"
common=(--gin.CACHE_DIR="$study/cache" --gin.TOKENIZER="$tokenizer")
[ "$size" = quick ] || common+=(--gin_file="experiments/small_study_$size.gin")
started=$(date +%s)
$python -m tools.small_study.data --data_dir="$data_dir" --size="$size" --output="$study/data"
$python -m optiml_jax.train --gin_file=experiments/small_study_text.gin --gin.DATA_DIR="$study/data" \
    --gin.MODEL_DIR="$study/text" "${common[@]}"
for cached in --mixture --suite; do
    $python -m tools.cache_tasks "$cached=small_study" --data_dir="$study/data" --cache_dir="$study/cache" \
        --tokenizer="$tokenizer"
done
$python -m tools.run_sweep experiments/small --seeds=3 --output="$folder" --gin.INIT_WEIGHTS="$study/text" "${common[@]}"
$python -m tools.small_study.report --runs="$folder/small" --output="$study/report" ${ABOUT:+--about="$ABOUT"}
echo "$(( ($(date +%s) - started) / 60 )) minutes in all"
