#!/usr/bin/env bash
# Sets everything up, then streams a data set and trains a small policy on it. Arguments go to examples/stream_and_train.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python examples/stream_and_train.py "$@"
