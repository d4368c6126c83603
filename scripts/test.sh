#!/usr/bin/env bash
# Sets everything up, then runs the linter, the formatter's check, the type checker and all tests but the long ones. `--long`: those, too.
# With other arguments: only pytest, with these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
# The Hub on this machine is not to be asked for through a proxy.
no_proxy="${no_proxy:-${NO_PROXY:-}},localhost,127.0.0.1"
export no_proxy NO_PROXY="$no_proxy"
if [ "${1:-}" = --long ]; then
    shift
    set -- -m "long or not long" "$@"
elif [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check --quiet .
    .venv/bin/mypy
fi
# In two processes, each with whole files: most tests wait, or use one core.
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
