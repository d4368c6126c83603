#!/usr/bin/env bash
# Runs tests again and again while other processes keep the cores busy: none may depend on luck.
#
#   scripts/luck.sh                          # 20 times all files that know of time, threads, processes or sockets (hours)
#   scripts/luck.sh 50 tests/storage         # 50 times these; all arguments but the first are pytest's
#
# Each run has its own seed of hash(), so its own order of sets. Prints the tests that failed, and how often; status 1 if there are any.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
PYTHON="${PYTHON:-.venv/bin/python}"
[ "$PYTHON" != .venv/bin/python ] || scripts/setup.sh

times="${1:-20}"
shift || true
if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046
    set -- $(grep -lrE '\b(threading|concurrent|multiprocessing|subprocess|socket|time\.|forking|LoopbackHub|signal)\b' --include='test_*.py' tests | sort)
fi

# As many busy processes as cores: each test has half of what it has alone.
busy=()
stop() { kill "${busy[@]}" 2>/dev/null || true; }
trap stop EXIT
for _ in $(seq "$(getconf _NPROCESSORS_ONLN)"); do
    (while :; do :; done) &
    busy+=($!)
done

failed="$(mktemp)"
for run in $(seq "$times"); do
    status=0
    output="$(PYTHONHASHSEED=$run "$PYTHON" -m pytest --numprocesses 2 --dist loadfile -q -rfE "$@" 2>&1)" || status=$?
    # 1: tests failed; above: pytest itself did, and there is nothing to repeat.
    if [ "$status" -gt 1 ]; then
        echo "$output"
        exit "$status"
    fi
    echo "run $run of $times: $(tail -1 <<<"$output")"
    if [ "$status" -eq 1 ]; then
        echo "$output" >>"$failed.texts"
        grep -E '^(FAILED|ERROR) ' <<<"$output" | sed 's/ - .*//' >>"$failed" || true
    fi
done
if [ -s "$failed" ]; then
    sort "$failed" | uniq -c | sort -rn
    echo "what they printed: $failed.texts"
    exit 1
fi
echo "none failed in $times runs"
