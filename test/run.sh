#!/usr/bin/env bash
# Style checks, then all tests and the tutorial, a process per core: a file's tests run in
# one process and share its fixtures. Arguments go to pytest: test/run.sh -k upscale -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh
venv=${DUS_VENV:-tools/venv}
. "${venv}/bin/activate"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

mapfile -t shell_files < <(find .ci egs2 test tools -path tools/venv -prune -o \
    '(' -name data -o -name dump -o -name exp -o -name downloads ')' -prune -o \
    -type f '(' -name '*.sh' -o -path .ci/run ')' -print)

set -x
black --check --quiet espnet_dus egs2 test tools/*.py tools/benchmarks setup.py
isort --check --quiet espnet_dus egs2 test tools/*.py tools/benchmarks setup.py
flake8 espnet_dus egs2 test tools/*.py tools/benchmarks setup.py
shellcheck -x -e SC1091 "${shell_files[@]}"
python -m pytest test doc/tutorial.ipynb --nbmake --nbmake-timeout=1200 \
    --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
