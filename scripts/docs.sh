#!/usr/bin/env bash
# Builds the site into build/site, in an environment of its own (build/docs-env); every warning is an error. `--serve`: shows it at
# http://localhost:8000 while pages change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

case "${1:-}" in
"") action=(build --strict) ;;
--serve) action=(serve --strict) ;;
*) echo "docs: unknown argument $1" >&2; exit 2 ;;
esac

env=build/docs-env
if [ "$(cat "$env/requirements.txt" 2>/dev/null)" != "$(cat docs/requirements.txt)" ]; then
    # The Python that scripts/setup.sh found; its packages are not needed.
    scripts/setup.sh
    .venv/bin/python -m venv --clear "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
    cp docs/requirements.txt "$env/requirements.txt"
fi
# mkdocs-material's notice about MkDocs 2 is no warning of these pages.
NO_MKDOCS_2_WARNING=1 "$env/bin/python" -m mkdocs "${action[@]}"
echo "docs: $(find build/site -name '*.html' | wc -l) pages in build/site"
