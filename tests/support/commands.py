"""The command line in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lerobot_grain.testing import Fault, LoopbackHub

ROOT = Path(__file__).parents[2]
# A shell lets what it starts in the background ignore SIGINT, and so do the processes that those
# start: Python then leaves it ignored. This one is not to depend on how the tests were started.
# A command that hangs says where.
COMMAND = [
    sys.executable,
    "-c",
    "import faulthandler; faulthandler.dump_traceback_later(80, exit=True); "
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from lerobot_grain._cli.main import main; exit(main())",
]


def interrupted(
    arguments: Sequence[str], hub: LoopbackHub, *, directory: Path
) -> tuple[int, bytes]:
    """Runs a command in a directory until it reads a video of the Hub, which never ends, and sends
    it Ctrl-C. Returns its status and what it wrote to standard error.
    """
    hub.add_fault(Fault(path_regex=r"\.mp4", method="GET", stall_at=10, times=None))
    hub.clear_requests()
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--endpoint", hub.endpoint],
        stderr=subprocess.PIPE,
        cwd=directory,
        env=os.environ | {"HF_HOME": str(directory / "home"), "PYTHONPATH": str(ROOT)},
    )
    try:
        while not any(".mp4" in str(each.file) for each in hub.requests()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=90)
    finally:
        process.kill()
        hub.clear_faults()
    return process.returncode, error
