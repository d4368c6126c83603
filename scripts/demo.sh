#!/usr/bin/env bash
# Sets everything up, then streams a data set and trains a small policy on it. Arguments go to examples/stream_and_train.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
# The Hub on this machine is not to be asked for through a proxy.
no_proxy="${no_proxy:-${NO_PROXY:-}},localhost,127.0.0.1"
export no_proxy NO_PROXY="$no_proxy"
exec .venv/bin/python examples/stream_and_train.py "$@"
