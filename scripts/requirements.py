"""Prints what the package requires, a line each, as pip reads it.

python scripts/requirements.py >requirements.txt
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

_METADATA = Path(__file__).parents[1] / "pyproject.toml"


def main() -> None:
    """Prints the lines."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("\n".join(tomllib.loads(_METADATA.read_text())["project"]["dependencies"]))


if __name__ == "__main__":
    main()
