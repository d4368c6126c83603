#!/usr/bin/env bash
# Makes a release up to the upload: refuses what is not ready, tests, builds and checks the package and the site, and tags. It uploads nothing, and
# prints the commands that do.
#
# The version is `__version__` of lerobot_grain/__init__.py. The lines of CHANGELOG.md under "Unreleased" must have been moved under it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

fail() { echo "release: $*" >&2; exit 1; }

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' lerobot_grain/__init__.py)
[ -n "$version" ] || fail "lerobot_grain/__init__.py has no line __version__ = \"...\""
tag=v$version
[ -z "$(git status --porcelain)" ] || fail "the checkout has changes that are not committed; commit or remove them"
! git rev-parse --quiet --verify "refs/tags/$tag" >/dev/null || fail "the tag $tag is there already; raise __version__"
grep -qE "^## \[${version//./\\.}\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md || fail "CHANGELOG.md has no line \"## [$version] - YYYY-MM-DD\""
[ -z "$(sed -n '/^## \[Unreleased\]/,/^## \[[0-9]/{/^[-*] /p}' CHANGELOG.md)" ] || fail "CHANGELOG.md has lines under Unreleased; move them under $version"
! grep -q 'lerobot-grain\.example' pyproject.toml || fail "pyproject.toml has the reserved address lerobot-grain.example; write the repository's public one"
grep -q "^version: $version\$" CITATION.cff || fail "CITATION.cff has another version than $version"

scripts/test.sh
scripts/docs.sh
scripts/package.sh
git tag --annotate "$tag" --message "lerobot_grain $version"
cat <<END
$tag is tagged here, and nothing was uploaded. What lies in dist/ is released with:
    git push origin $tag
    .venv/bin/python -m twine upload dist/*
END
