#!/usr/bin/env bash
# Sets everything up, then runs the linter, the formatter's check and the type checker. `--fix`: mends what the first two can.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
scripts/setup.sh
case "${1:-}" in
"") check=(--check --quiet) fix=() ;;
--fix) check=(--quiet) fix=(--fix) ;;
*) echo "lint: unknown argument $1" >&2; exit 2 ;;
esac
.venv/bin/ruff check ${fix[@]+"${fix[@]}"} .
.venv/bin/ruff format "${check[@]}" .
.venv/bin/mypy
