# Sourced by demo.sh and test.sh: a virtual environment in .venv with everything of requirements.txt, the package itself,
# and the extras named in $1 ("" or "[test]"). Needs Python 3.11 or 3.12, pip and git.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    for python in "${PYTHON:-}" python3.11 python3.12 python3; do
        if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            "$python" -m venv .venv
            break
        fi
    done
    [ -x .venv/bin/python ] || { echo "error: no Python 3.11 or 3.12 found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
fi
echo "installing into .venv (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e ".$1"
