"""The same targets under atheris (libFuzzer), which keeps the inputs that reach new code.

Optional: `pip install atheris` first.

    python -m fuzz.guided TARGET [options of libFuzzer, such as -max_total_time=600] [folders]

libFuzzer stops at the first finding and writes its input to a file, which `python -m fuzz --targets
TARGET --replay FILE` runs again.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["lerobot_grain"]):
    from fuzz.corpus import make_seeds
    from fuzz.mutations import mutate_bytes
    from fuzz.targets import TARGETS


def main() -> None:
    """The command line, see above."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    warnings.simplefilter("error")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        try:
            return target.mutate(Random(seed), bytes(data))[:max_size]
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            # damaged too much to have a structure
            return mutate_bytes(Random(seed), bytes(data))[:max_size]

    def run(data: bytes) -> None:
        target.accepts(data)

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(make_seeds()[name]):
            (Path(corpus) / f"seed-{number:03}").write_bytes(data)
        limits = ["-max_len=200000", "-timeout=10", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *limits, *options, corpus], run, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
