"""Programs that end as programs do, exit handlers and destructors among it, forked from one that
has imported the package.

To import it takes a program 2 s of a core. The processes of `tests.support.forked` do not end in
this way: `multiprocessing` ends them before the exit handlers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

# Runs programs, of each list three at a time: how long they take to end is measured. Warnings are
# errors, and where nobody is to catch those, they go to standard error.
_SERVER = """
import atexit, json, os, sys, time

# What a program appends is called at its very end: what was registered first runs last.
at_the_end = []
atexit.register(lambda: [call() for call in at_the_end])

import jax
import lerobot_grain

def fork_each(programs):
    # Returns a program in each child, and reports in the parent.
    running = {}
    left = list(enumerate(programs))
    while left or running:
        while left and len(running) < 3:
            number, program = left.pop(0)
            child = os.fork()
            if child == 0:
                return program
            running[child] = number
        child, status = os.wait()
        ended = time.monotonic()
        number = running.pop(child)
        print(json.dumps([number, os.waitstatus_to_exitcode(status), ended]), flush=True)

while True:
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    if program := fork_each(json.loads(line)):
        break
for number, path in enumerate((os.devnull, program["output"], program["errors"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
os.environ.update(program["environment"])
sys.argv = ["-c", *program["arguments"]]
exec(program["code"])
"""


class Program(NamedTuple):
    """What `python -c code arguments` would run.

    Attributes:
      code: `at_the_end` is a list of what it calls after all exit handlers.
      arguments: texts.
      environment: variables that are added.
    """

    code: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = {}


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
      status: 0; positive: as it says; negative: by this signal.
      seconds: by `time.monotonic()`, when it had ended.
      output, errors: what it wrote.
    """

    status: int
    seconds: float
    output: str
    errors: str


class Programs:
    """Runs programs; it is started once, as `python -X dev -W error`."""

    def __init__(self) -> None:
        # The allocator is not that of -X dev, with which imports take twice as long.
        environment = os.environ | {"PYTHONMALLOC": "pymalloc", "JAX_PLATFORMS": "cpu"}
        self._server = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", _SERVER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        # With all that hang, unless they were ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.communicate()

    def run(self, programs: Sequence[Program], folder: Path) -> list[Ended]:
        """Runs them, three at a time, and returns how each ended.

        Args:
          programs: at least one.
          folder: gets files with what they write.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        files = [
            {"output": str(folder / f"{number}.out"), "errors": str(folder / f"{number}.err")}
            for number in range(len(programs))
        ]
        told = [
            {**program._asdict(), **of_it} for program, of_it in zip(programs, files, strict=True)
        ]
        self._server.stdin.write(json.dumps(told) + "\n")
        self._server.stdin.flush()
        found = {}
        for _ in programs:
            try:
                line = self._server.stdout.readline()
            except BaseException:
                # Of a program that hangs the test has had enough; nothing of it is for the next.
                os.killpg(self._server.pid, signal.SIGKILL)
                raise
            number, status, seconds = json.loads(line)
            texts = [Path(files[number][name]).read_text() for name in ("output", "errors")]
            found[number] = Ended(status, seconds, *texts)
        return [found[number] for number in range(len(programs))]
