"""The output of `lerobot-grain train-check`: one JSON object, or text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from lerobot_grain._cli.output.report import Part, Table
from lerobot_grain._cli.output.units import shape_text, size
from lerobot_grain._inspection.overview.train_step import (
    StepCost,
    Together,
    batch_values,
    device_name,
    is_on_cpu,
)
from lerobot_grain._inspection.profile import Reading


def as_json(
    dataset: str,
    reading: Reading,
    cost: StepCost,
    together: Together | None,
    *,
    step: str | None,
) -> dict[str, Any]:
    """Returns what was measured, units in names.

    Args:
      dataset: name and commit.
      reading: the stream alone.
      cost: the step alone.
      together: stream and step; `None`: no step was run.
      step: the name of the user's; `None`: there is none.
    """
    statistics = reading.statistics
    batches = reading.steady_examples_per_second or reading.examples_per_second
    batch_seconds = reading.batch_size / batches
    return {
        "dataset": dataset,
        "device": device_name(),
        "device_is_cpu": is_on_cpu(),
        "batch_size": reading.batch_size,
        "batch": [asdict(value) for value in batch_values(reading.last_batch)],
        "stream": {
            "batches": len(reading.batch_seconds),
            "first_batch_seconds": float(reading.batch_seconds[0]),
            "batch_seconds": batch_seconds,
            "batches_per_second": 1 / batch_seconds,
            "waited_for_fetch_seconds": statistics.waited_for_fetch_seconds,
            "waited_for_decode_seconds": statistics.waited_for_decode_seconds,
            "other_seconds": reading.other_seconds,
        },
        "step": {"name": step, **asdict(cost), "steps_per_second": 1 / cost.step_seconds},
        "together": None
        if together is None
        else {
            **asdict(together),
            "steps_per_second": together.num_steps / together.seconds,
            "waited_share": together.waited_seconds / together.seconds,
        },
        "slower": "stream" if batch_seconds > cost.step_seconds else "step",
    }


def trial_parts(report: Mapping[str, Any]) -> Iterator[Part]:
    """Yields a report of `as_json` as lines and tables."""
    total = sum(value["num_bytes"] for value in report["batch"])
    yield f"{report['dataset']}: batches of {report['batch_size']}, steps on {report['device']}"
    yield f"\na batch, {size(total)}:"
    yield Table(
        header=("key", "shape", "dtype", "bytes", "on the device"),
        rows=[_value_row(value) for value in report["batch"]],
        numbers=(3,),
    )
    yield "\nrates:"
    yield Table(rows=[*_rate_rows(report)])
    yield f"\n{_verdict(report)}"


def _value_row(value: Mapping[str, Any]) -> tuple[str, ...]:
    shape = shape_text(value["shape"])
    placed = value["device_dtype"] or "no: texts stay on the host"
    return value["key"], shape, value["dtype"], f"{value['num_bytes']:,}", placed


def _rate_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    stream = report["stream"]
    step = report["step"]
    yield (
        "stream alone",
        f"{stream['batches_per_second']:,.1f} batches/s ({_milliseconds(stream['batch_seconds'])} "
        f"each); the first after {stream['first_batch_seconds']:.2f} s",
    )
    yield "to the device", f"{_milliseconds(step['transfer_seconds'])} a batch"
    name = step["name"] or "one that reads every number once"
    compiled = (
        "as given"
        if step["compile_seconds"] is None
        else f"{name}; the first, which compiles, {step['compile_seconds']:.2f} s"
    )
    yield (
        "step alone",
        f"{step['steps_per_second']:,.1f} steps/s ({_milliseconds(step['step_seconds'])} each): "
        f"{compiled}",
    )
    together = report["together"]
    if together is not None:
        yield (
            "together",
            f"{together['steps_per_second']:,.1f} steps/s; {together['waited_share']:.0%} of the "
            f"time the step waited for a batch",
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _verdict(report: Mapping[str, Any]) -> str:
    """Returns what a training would wait for, and what helps."""
    stream = report["stream"]
    step = report["step"]
    ratio = stream["batch_seconds"] / step["step_seconds"]
    if report["slower"] == "step":
        text = (
            f"The step is the slower one ({1 / ratio:,.1f} times): the stream keeps up, and the "
            "training does not wait for it."
        )
    else:
        waits = {
            "the network or disk": stream["waited_for_fetch_seconds"],
            "decoding": stream["waited_for_decode_seconds"],
            "assembling batches": stream["other_seconds"],
        }
        most = max(waits, key=lambda name: waits[name])
        share = waits[most] / (sum(waits.values()) or 1.0)
        text = (
            f"The stream is the slower one ({ratio:,.1f} times): a training with this step waits, "
            f"most of all for {most} ({share:.0%} of the stream's time). `lerobot-grain profile` "
            "says more, docs/performance.md what helps."
        )
    if step["name"] is None and step["compile_seconds"] is not None:
        text += (
            "\nThis step only reads the batch, so yours takes longer: --step MODULE:FUNCTION runs "
            "it, --step-seconds compares with a known duration."
        )
    if report["device_is_cpu"] and report["together"] is not None:
        text += "\nThe steps ran on the cores that decode, so each slows the other down."
    return text
