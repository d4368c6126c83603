#!/usr/bin/env bash
# Builds the sdist, and the wheel from it, into dist/; checks their metadata; installs the wheel into a new environment and streams a dataset there.
#
#   scripts/package.sh                         # the environment sees the dependencies of .venv: seconds
#   scripts/package.sh --python 3.12           # an empty environment of that Python, dependencies from the package index: up to 5 GB
#   scripts/package.sh --python 3.12 --wheel   # the same with the wheel that lies in dist/
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

version= builds=true
while [ $# -gt 0 ]; do
    case "$1" in
    --python) version=${2:?--python needs a version, such as 3.12}; shift 2 ;;
    --wheel) builds=false; shift ;;
    *) echo "package: unknown argument $1" >&2; exit 2 ;;
    esac
done

scripts/setup.sh
if $builds; then
    rm -rf dist
    .venv/bin/python -m build --outdir dist . >&2
    .venv/bin/python -m twine check --strict dist/*
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "$version" ]; then
    python=$(find_python "$version") || { echo "package: there is no Python $version" >&2; exit 1; }
    "$python" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
else
    .venv/bin/python -m venv --without-pip "$work/env"
    .venv/bin/python -m pip --python "$work/env/bin/python" install --quiet --disable-pip-version-check --no-deps dist/*.whl
    # The packages of .venv come after those of the new environment, and its link to this checkout is not followed.
    .venv/bin/python -c 'import sys; print(*(path for path in sys.path if path.endswith("site-packages")), sep="\n")' \
        >"$("$work/env/bin/python" -c 'import site; print(site.getsitepackages()[0])')/dependencies.pth"
fi

check=$PWD/scripts/check_installed.py
golden=$PWD/shared/golden
[ -d "$golden" ] || golden=$PWD/../shared/golden
# Away from the checkout, whose package would be imported instead.
cd "$work"
env -u PYTHONPATH "$work/env/bin/lerobot-grain" --help >/dev/null
env -u PYTHONPATH "$work/env/bin/python" "$check" --golden "$golden"
