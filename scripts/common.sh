# Sourced by the other scripts.

# The Hub on this machine is not to be asked for through a proxy.
no_proxy="${no_proxy:-${NO_PROXY:-}},localhost,127.0.0.1"
export no_proxy NO_PROXY="$no_proxy"

# Compiled modules are kept: without them each of the processes that tests start compiles the package (0.3 s of a core), and pytest rewrites the
# assertions of all tests again (some 10 s in each of its processes).
unset PYTHONDONTWRITEBYTECODE

# find_python 3.12: prints the path of a Python of that version.
find_python() {
    local candidate
    for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# --help prints the comment at the head of the script that sources this one.
case "${1:-}" in
-h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/$(basename "$0")"; exit ;;
esac
