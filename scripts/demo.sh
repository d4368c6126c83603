#!/usr/bin/env bash
# Sets everything up, then trains a small diffusion policy on a streamed dataset, stops it half-way, and goes on from the checkpoint. With
# arguments: only examples/diffusion_policy.py, with these. The dataset and the checkpoints stay in build/demo until the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
scripts/setup.sh
if [ $# -gt 0 ]; then
    exec .venv/bin/python examples/diffusion_policy.py "$@"
fi
directory=build/demo
rm -rf "$directory"
run() { .venv/bin/python examples/diffusion_policy.py --directory "$directory" --steps 300 --save-every 75 "$@"; }
run --stop-at 150
echo "stopped; going on from the last checkpoint"
run --resume
echo "the dataset and the checkpoints are in $directory; look at it: .venv/bin/lerobot-grain show $directory/robot --open"
