#!/usr/bin/env bash
# Sets everything up, then runs the linter, the formatter's check, the type checker and all tests but the long ones. `--long`: those, too.
# With other arguments: only pytest, with these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
scripts/setup.sh
if [ "${1:-}" = --long ]; then
    shift
    set -- -m "long or not long" "$@"
elif [ $# -eq 0 ]; then
    scripts/lint.sh
fi
# In four processes, each with whole files: half of the time of the tests is waiting (for processes, servers, deadlines).
exec .venv/bin/python -m pytest --numprocesses 4 --dist loadfile "$@"
