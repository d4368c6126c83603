#!/usr/bin/env bash
# Tries the package in other people's environments: environments/NAME.txt has the pins of one, and its Python.
#
#   scripts/environments.sh [NAME ...]            # make each, install the package beside its pins, run the suite (default: all)
#   scripts/environments.sh --brief [NAME ...]    # the same with a few tests that use every dependency
#   scripts/environments.sh --resolve [NAME ...]  # only ask pip whether the package can be installed without changing a pin
#
# Prints a line for each: passed, FAILED, or why it was not run. One environment at a time, and removed afterwards: some are 5 GB.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

# One file of tests for each dependency, and what works with all of them.
BRIEF=(tests/base/test_versions.py tests/promises/test_golden.py tests/datasets/test_lerobot_dataset.py tests/datasets/feed/test_device.py tests/promises/test_hub_stream.py tests/video/test_images.py
    tests/datasets/test_state.py tests/training/test_normalization.py tests/datasets/mixtures/test_mixture_dataset.py tests/datasets/test_checkpoint.py tests/video/test_depth.py)

mode=suite
case "${1:-}" in --resolve | --brief) mode=${1#--}; shift ;; esac
[ $# -gt 0 ] || set -- $(cd environments && ls ./*.txt | sed 's|^\./||; s|\.txt$||')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
tell() { printf '%-10s %s\n' "$1" "$2"; }
fail() { tell "$1" "FAILED: $2"; failed=1; }

# What pip says of a failure, without what it says of places where nothing lies.
reason() { grep -v 'is ignored' "$1" | grep -iE 'error|conflict|requires' | head -3 | tr '\n' ' '; }

resolve() {
    local name=$1 version=$2
    # The metadata of packages only, none of their files. pip takes no directory together with another Python, so its requirements are named.
    .venv/bin/python scripts/requirements.py >"$work/ours.txt"
    if .venv/bin/python -m pip install --dry-run --quiet --ignore-installed --python-version "$version" --only-binary=:all: \
        --target "$work/none" -r "environments/$name.txt" -r "$work/ours.txt" >"$work/log" 2>&1; then
        tell "$name" "no pin is changed"
    else
        fail "$name" "$(reason "$work/log")"
    fi
}

nothing_replaced() {
    local replaced
    "$work/env/bin/python" -m pip freeze --all >"$work/after"
    replaced=$(comm -23 <(sort "$work/before") <(sort "$work/after") | tr '\n' ' ')
    [ -z "$replaced" ] || { fail "$1" "$2 replaced $replaced"; return 1; }
}

run() {
    local name=$1 version=$2 python tests=() started=$SECONDS limit=3600
    [ "$mode" = brief ] && limit=200
    python=$(find_python "$version") || { tell "$name" "not run: there is no Python $version"; return; }
    # No failure of the package: whether its pins go together is what --resolve asks.
    "$python" -m venv "$work/env" && timeout "$limit" "$work/env/bin/python" -m pip install --quiet --retries 10 -r "environments/$name.txt" >"$work/log" 2>&1 ||
        { tell "$name" "not run: its pins were not installed within $limit s: $(reason "$work/log")"; return; }
    "$work/env/bin/python" -m pip freeze --all >"$work/before"
    # The package as a user installs it. The tools of the tests come after it, held by the pins: the newest of them want a newer NumPy.
    "$work/env/bin/python" -m pip install --quiet --retries 10 . >"$work/log" 2>&1 || { fail "$name" "$(reason "$work/log")"; return; }
    nothing_replaced "$name" "the package" || return
    "$work/env/bin/python" -m pip install --quiet --retries 10 --constraint "environments/$name.txt" '.[test]' >"$work/log" 2>&1 ||
        { fail "$name" "$(reason "$work/log")"; return; }
    nothing_replaced "$name" "the tools of the tests" || return
    # CUDA's libraries, where a package stands in for a toolkit of the machine.
    local libraries
    libraries=$(find "$work/env" -type d -path '*/nvidia/*/lib' | tr '\n' ':')
    [ "$mode" = brief ] && tests=("${BRIEF[@]}")
    local installed=$((SECONDS - started))
    LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:-}" PYTHONPATH=$PWD timeout "$limit" "$work/env/bin/python" -m pytest --numprocesses 2 --dist loadfile "${tests[@]}" >"$work/log" 2>&1
    case $? in
    0) result=passed ;;
    124) tell "$name" "not run: the tests took more than $limit s (installed in $installed s)"; return ;;
    *) result=FAILED; failed=1; cat "$work/log" ;;
    esac
    tell "$name" "$result: $(grep -E "(passed|failed|error|ran).* in " "$work/log" | tail -1) (installed in $installed s)"
}

[ "$mode" != resolve ] || scripts/setup.sh
for name in "$@"; do
    [ -f "environments/$name.txt" ] || { fail "$name" "there is no environments/$name.txt"; continue; }
    version=$(sed -n 's/^# python //p' "environments/$name.txt")
    if [ "$mode" = resolve ]; then resolve "$name" "$version"; else run "$name" "$version"; fi
    rm -rf "$work/env"
done
exit $failed
