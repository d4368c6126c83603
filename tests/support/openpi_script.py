"""openpi's training script with the changes of docs/trainers/openpi.md, and the file that they
bring in.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "trainers" / "openpi.md"
# Who shapes the examples -> how many blocks of the page `openpi_data.py` has.
FEEDS = {"ours": 1, "openpi": 2}


def blocks(language: str) -> list[str]:
    """Returns the blocks of the page in a language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, PAGE.read_text(), re.MULTILINE | re.DOTALL)


def changed(script: str) -> str:
    """Applies the page's diff: each part must be found once, its context included."""
    (diff,) = blocks("diff")
    _, *hunks = re.split(r"^@@.*@@\n", diff, flags=re.MULTILINE)
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before, after = (
            "".join(line[1:] or "\n" for line in lines if line[0] != other) for other in "+-"
        )
        assert script.count(before) == 1, f"the script has other lines than\n{before}"
        script = script.replace(before, after)
    return script


def import_script(path: Path, feed: str) -> Any:
    """Returns the changed script as a module; `openpi_data` stays in `sys.modules`."""
    data = types.ModuleType("openpi_data")
    for block in blocks("python")[: FEEDS[feed]]:
        exec(compile(block, str(PAGE), "exec"), vars(data))
    sys.modules[data.__name__] = data
    script = types.ModuleType("openpi_changed_script")
    # Dataclasses and type checkers look for the module of what they see.
    sys.modules[script.__name__] = script
    exec(compile(changed(path.read_text()), str(path), "exec"), vars(script))
    return script
