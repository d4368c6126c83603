#!/usr/bin/env bash
# Makes .venv with this package, its development tools and pinned PyTorch wheels, and sees to FFmpeg's shared libraries.
# Does nothing, quickly, when all of that is there. Always uses .venv, also inside of another environment that is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

PYTHON=.venv/bin/python
STAMP=.venv/lerobot_grain-setup

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else fail "need root, and there is no sudo, for: $*"; fi
}
apt_install() {
    say "installing $* with apt-get"
    as_root apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# What an installation depends on; the directory is in it because the package is installed in place.
fingerprint() { { pwd; cat pyproject.toml constraints-cpu.txt; } | cksum; }

# torchcodec loads FFmpeg's libraries when it is imported. Asking the linker is a hundred times faster than importing it, but misses libraries
# that are not where the linker looks (conda, Homebrew).
linker_knows_ffmpeg() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep 'libavcodec\.so' >/dev/null; }
torchcodec_works() { "$PYTHON" -W ignore -c 'import torchcodec.decoders' >/dev/null 2>&1; }

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] && [ -x "$PYTHON" ] && { linker_knows_ffmpeg || torchcodec_works; }; then
    exit 0
fi

if ! "$PYTHON" -c '' 2>/dev/null; then
    found=
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found=$candidate
            break
        fi
    done
    [ -n "$found" ] || fail "no Python of version 3.11 or newer found (python3 is $(python3 --version 2>&1 || true)); install one and run this again"
    if ! "$found" -c 'import ensurepip' 2>/dev/null && command -v apt-get >/dev/null; then
        # Debian and Ubuntu ship the module venv without what it needs.
        apt_install "python$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    fi
    say "making .venv with $("$found" --version)"
    "$found" -m venv --clear .venv
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail ".venv has $("$PYTHON" --version), and 3.11 or newer is needed; remove .venv and run this again"

say "installing the package and its development tools into .venv (some minutes the first time)"
"$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e '.[dev]'

if ! linker_knows_ffmpeg && ! torchcodec_works; then
    if command -v apt-get >/dev/null; then
        apt_install ffmpeg
    elif command -v brew >/dev/null; then
        say "installing ffmpeg with brew"
        brew install ffmpeg >&2
    else
        fail "FFmpeg's shared libraries (version 4 to 8) are missing, and there is neither apt-get nor brew; install them and run this again"
    fi
fi
torchcodec_works || fail "torchcodec cannot load FFmpeg's shared libraries: $("$PYTHON" -c 'import torchcodec.decoders' 2>&1 | tail -1)"

fingerprint >"$STAMP"
say "done"
