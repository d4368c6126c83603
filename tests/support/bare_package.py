"""For code of other processes: the package without its `__init__`, which imports far more than the
disk cache needs.
"""

from __future__ import annotations

import os

import lerobot_grain

# Where the package lies: the first argument of the process.
SOURCE = os.path.dirname(lerobot_grain.__file__)
BARE_PACKAGE = """
import sys, types
for name in ("lerobot_grain", "lerobot_grain._base", "lerobot_grain._storage",
             "lerobot_grain._storage.disk"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + name[len("lerobot_grain"):].replace(".", "/")]
"""
