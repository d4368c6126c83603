#!/usr/bin/env bash
# Sets everything up, then measures. Without arguments: throughput of small and large frames in about three minutes, as a table like that of
# docs/performance.md. With arguments: `bench.sh cores --help` runs benchmarks/cores.py with the rest of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
scripts/setup.sh
if [ $# -eq 0 ]; then
    exec .venv/bin/python benchmarks/throughput.py --markdown --cases small vga3 --scale 0.25
fi
name=${1%.py}
shift
[ -f "benchmarks/$name.py" ] || { echo "bench: there is no benchmarks/$name.py; there are: $(cd benchmarks && ls [a-z]*.py | sed 's/\.py$//' | tr '\n' ' ')" >&2; exit 2; }
exec .venv/bin/python "benchmarks/$name.py" "$@"
