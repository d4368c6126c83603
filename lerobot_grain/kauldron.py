"""For Kauldron's Trainer: `KauldronPipeline` (`docs/trainers/kauldron.md`).

Needs the package `kauldron`, so it is no part of `import lerobot_grain`. Kauldron's configs import
it as their own modules:

    with konfig.imports():
        from lerobot_grain import kauldron as lerobot_kauldron
"""

from lerobot_grain._training.kauldron import KauldronPipeline

__all__ = ["KauldronPipeline"]
