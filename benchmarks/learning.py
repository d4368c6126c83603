"""Trains the policies of the examples, each as it is and once more blind, and says what they learn.

    python benchmarks/learning.py --plot docs/images/learning.png      # about 10 minutes on 2 cores
    python benchmarks/learning.py --examples act --steps 2000

Blind: what the actions depend on, the cameras (in behaviour cloning the state, in goal reaching the
goal), is zeros in every batch. Errors are those of the policy's actions on held-out episodes. The
datasets are those that the examples write.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# with the steps that are enough
EXAMPLES = {
    "behaviour_cloning": 300,
    "act": 1000,
    "diffusion_policy": 600,
    "goal_reaching": 300,
    "mixture": 300,
}


def main() -> None:
    """Runs the benchmark with the command line's options, and prints a table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--examples", nargs="+", choices=EXAMPLES, default=list(EXAMPLES), metavar="EXAMPLE"
    )
    parser.add_argument("--steps", type=int, help="in place of what is enough for each")
    parser.add_argument("--plot", type=Path, help="PNG file for the errors")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    results: dict[tuple[str, str], list[Any]] = {}
    lines = [
        "| example | held out | steps | error at the start | at the end | | blind, at the end | | "
        "ms a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for example in options.examples:
        steps = options.steps or EXAMPLES[example]
        seeing, blind = (_trained(example, steps, *extra) for extra in ((), ("--blind",)))
        for name, first in seeing.errors[0].items():
            results[example, name] = [
                {step: errors[name] for step, errors in run.errors.items()}
                for run in (seeing, blind)
            ]
            last, blind_last = (run.errors[steps][name] for run in (seeing, blind))
            lines.append(
                f"| {example} | {name} | {steps} | {first:.3f} | {last:.3f} | {last / first:.0%} "
                f"| {blind_last:.3f} | {blind_last / first:.0%} | "
                f"{seeing.step_seconds * 1000:.0f} |"
            )
    print("\n".join(lines))
    if options.plot is not None:
        _plot(options.plot, results)


def _trained(example: str, steps: int, *extra: str) -> Any:
    print(f"--- {example} {' '.join(extra)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="lerobot_grain-") as directory:
        arguments = [
            "--directory",
            directory,
            "--steps",
            str(steps),
            "--save-every",
            str(max(1, steps // 10)),
            *extra,
        ]
        return importlib.import_module(example).main(arguments)


def _plot(path: Path, results: dict[tuple[str, str], list[Any]]) -> None:
    figure = Figure(figsize=(3 * len(results), 3), layout="constrained")
    for axes, ((example, name), (seeing, blind)) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        axes.plot(seeing.keys(), seeing.values(), "o-", color="tab:green", label="sees")
        axes.plot(blind.keys(), blind.values(), "x-", color="tab:red", label="blind")
        axes.set(
            title=example if name == "held-out" else f"{example}, {name}",
            xlabel="step",
            ylim=(0, None),
        )
    figure.axes[0].set_ylabel("error on held-out episodes")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
