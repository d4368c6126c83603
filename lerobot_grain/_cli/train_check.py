"""`lerobot-grain train-check`: runs a jitted step on the batches of a stream, and says what the
training would wait for.

Its text: `_cli/output/train_check_text`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from contextlib import closing
from pathlib import Path

from lerobot_grain import InvalidRequestError, LeRobotIterDataset
from lerobot_grain._cli.argument_types import seconds
from lerobot_grain._cli.output.report import print_report
from lerobot_grain._cli.output.train_check_text import as_json, trial_parts
from lerobot_grain._cli.progress import ProgressLine
from lerobot_grain._cli.selection_arguments import add_stream_arguments, stream_of
from lerobot_grain._inspection.overview.train_step import (
    Step,
    Together,
    measure_step,
    measure_together,
)
from lerobot_grain._inspection.profile import Reading, measure_reading

_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command to those that every command has."""
    add_stream_arguments(parser)
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=_SECONDS,
        metavar="S",
        help="to stream for, and to stream and train for (default: %(default)g each)",
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument(
        "--step",
        metavar="MODULE:FUNCTION",
        help="a function of a batch, a dict of jax.Array, that jax.jit can compile; the module is "
        "looked for here, too (default: one that reads every number of the batch once)",
    )
    step.add_argument(
        "--step-seconds",
        type=seconds,
        metavar="S",
        help="how long a step of your training takes: none is run, and the rates are compared",
    )


def run(options: argparse.Namespace) -> int:
    """Tries and prints. Returns the exit status.

    Raises:
      LeRobotGrainError: an option is out of its range, the dataset cannot be opened or read, or the
        step fails.
    """
    step = None if options.step is None else _imported(options.step)
    dataset = LeRobotIterDataset(**stream_of(options))
    with closing(dataset.repository), ProgressLine() as progress:
        reading = _streamed(dataset, options, progress)
        progress.show("compiling the step")
        cost = measure_step(reading, step=step, step_seconds=options.step_seconds)
        together = (
            None
            if options.step_seconds is not None
            else _together(dataset, step, options, progress)
        )
    report = as_json(
        dataset.repository.description,
        reading,
        cost,
        together,
        step=options.step,
    )
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(trial_parts(report))
    return 0


def _streamed(
    dataset: LeRobotIterDataset, options: argparse.Namespace, progress: ProgressLine
) -> Reading:
    return measure_reading(
        dataset,
        batch_size=options.batch_size,
        max_batches=None,
        max_seconds=options.seconds,
        on_batch=lambda examples, seconds: progress.show(
            f"the stream alone: {examples:,} examples in {seconds:.1f} s"
        ),
    )


def _together(
    dataset: LeRobotIterDataset,
    step: Step | None,
    options: argparse.Namespace,
    progress: ProgressLine,
) -> Together:
    return measure_together(
        dataset,
        batch_size=options.batch_size,
        step=step,
        max_seconds=options.seconds,
        on_step=lambda steps, seconds: progress.show(
            f"stream and step together: {steps:,} steps in {seconds:.1f} s"
        ),
    )


def _imported(name: str) -> Step:
    """Returns the function that `MODULE:FUNCTION` names; the module may lie in this directory."""
    module_name, separator, function_name = name.partition(":")
    if not (separator and module_name and function_name):
        raise InvalidRequestError(f"--step {name}: expected MODULE:FUNCTION, such as policy:step")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Whatever the code of the user raises.
        raise InvalidRequestError(
            f"--step {name}: the module {module_name} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    step = getattr(module, function_name, None)
    if not callable(step):
        raise InvalidRequestError(
            f"--step {name}: {module_name} has no function {function_name}; expected a function of "
            "a batch"
        )
    found: Step = step
    return found
