"""Several JAX processes on this machine, each with a part of one task.

What a process runs calls `jax.distributed.initialize` with `coordinator`, `num_processes` and
`process` of its task, and returns what it saw, which JSON can hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import jax

from tests.support.forked import forking

DEADLINE_SECONDS = 50

Main = Callable[[dict[str, Any]], Any]


def run_processes(
    main: Main, task: dict[str, Any], num_processes: int, directory: Path
) -> list[Any]:
    """Runs a task in so many processes, and returns what each saw; none is left behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    task = {**task, "coordinator": coordinator, "num_processes": num_processes}
    # Not pipes, which a process could fill while nobody reads them.
    outputs = [directory / f"output-{process}.txt" for process in range(num_processes)]
    with contextlib.ExitStack() as stack:
        workers = []
        for process, output in enumerate(outputs):
            workers.append(
                forking().Process(
                    target=_run, args=(main, {**task, "process": process}, str(output)), daemon=True
                )
            )
            workers[-1].start()
            stack.callback(_end, workers[-1])
        deadline = time.monotonic() + DEADLINE_SECONDS
        # When one fails, the others wait for it; they are not waited for.
        while any(worker.exitcode is None for worker in workers) and not any(
            worker.exitcode for worker in workers
        ):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        codes = [worker.exitcode for worker in workers]
        texts = [output.read_text() if output.exists() else "" for output in outputs]
        assert codes == [0] * num_processes, "\n\n".join(texts)
        # Gloo writes to stdout too, before the last line.
        return [json.loads(text.splitlines()[-1]) for text in texts]


def _end(worker: ForkServerProcess) -> None:
    worker.kill()
    worker.join(timeout=10)


def _run(main: Main, task: dict[str, Any], output: str) -> None:
    """Runs one process of a task, with all that it prints, errors among it, in a file."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    seen = main(task)
    # Waits for the others. At the end of a program JAX does so, but a forked process ends
    # without exit handlers.
    jax.distributed.shutdown()
    os.write(1, b"\n" + json.dumps(seen).encode() + b"\n")
