#!/usr/bin/env bash
# Reports which lines and branches of the package the tests run: by folder, and the missing ones by file.
#
#   scripts/coverage.sh                   # of the whole suite
#   scripts/coverage.sh tests/storage     # of these tests; all arguments are pytest's
#
# The processes that tests start count, too. Takes half as long again as the tests alone. The HTML report goes to htmlcov/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
scripts/setup.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'coverage>=7.10' 'pytest-cov>=7'
status=0
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report= "$@" || status=$?
.venv/bin/python -m coverage report --show-missing --skip-covered
.venv/bin/python -m coverage html --quiet
.venv/bin/python -m coverage json --quiet
.venv/bin/python scripts/coverage_by_folder.py coverage.json
exit "$status"
