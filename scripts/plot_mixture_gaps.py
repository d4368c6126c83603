"""Plots how far apart the examples of a component of a mixture are, next to what a random draw of
each example would give: docs/images/mixture_gaps.png.

    python scripts/plot_mixture_gaps.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lerobot_grain._order.mixture import TURN, MixtureOrder, shares_of

_TURNS = 16
_WEIGHTS = {"a half": 32, "a quarter": 16, "a sixteenth": 4, "the rest": 12}
_IMAGE = Path(__file__).parents[1] / "docs" / "images" / "mixture_gaps.png"


def main() -> None:
    """Draws the figure."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    shares = shares_of(_WEIGHTS)
    order = MixtureOrder(seed=0, begin=0, shares=list(shares.values()), starts=[0] * len(shares))
    components, _ = order.places(np.arange(_TURNS * TURN))
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (name, share) in enumerate(shares.items()):
        if name == "the rest":
            continue
        gaps = np.diff(np.flatnonzero(components == number))
        found = np.bincount(gaps)[1:] / len(gaps)
        lengths = np.arange(1, len(found) + 1)
        probability = share / TURN
        (line,) = axes.plot(lengths, found, ".", label=f"{name}: {share:,} of {TURN:,}")
        axes.plot(lengths, probability * (1 - probability) ** (lengths - 1), color=line.get_color())
    axes.set(
        yscale="log",
        xlim=(0, 80),
        ylim=(1e-5, 1),
        xlabel="examples from one of a component to its next one",
        ylabel="part of all gaps",
        title=f"{_TURNS} turns; lines: each example drawn at random",
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(_IMAGE, dpi=110)


if __name__ == "__main__":
    main()
