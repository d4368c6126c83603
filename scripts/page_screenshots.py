"""Takes the pictures of the page of `lerobot-grain show` that stand in the docs, in chromium:
docs/images/show_row.png, show_episode_dark.png and show_phone.png.

    python scripts/page_screenshots.py [DIRECTORY]

The dataset is one of real frames, by default that of ../shared. It is served under a name of the
Hub, so that the page says no path of this machine.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lerobot_grain._cli.main import main as run_command  # noqa: E402
from lerobot_grain.testing import LoopbackHub  # noqa: E402
from tests.support.browser import find_browser, running_browser  # noqa: E402

_DATASET = ROOT.parent / "shared" / "real" / "cr5_v30"
_NAME = "org/banana"
# Name of the picture -> arguments of the command, width of the window, whether it is dark, height
# of the part that is shown.
_PICTURES = {
    "show_row": (["--row", "405", "--frames", "7"], 1280, False, 900),
    "show_episode_dark": (["--episode", "3"], 1280, True, 800),
    "show_phone": (["--row", "405"], 400, False, 900),
}


def main() -> int:
    """Takes the pictures. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=_DATASET,
        help="the dataset (default: %(default)s)",
    )
    directory = parser.parse_args().directory
    path = find_browser()
    if path is None:
        print("no chromium is installed: apt-get install chromium", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as made,
        LoopbackHub() as hub,
        running_browser(path) as browser,
    ):
        hub.add_repository(_NAME, directory, tags=["v3.0"])
        page = Path(made) / "page.html"
        for name, (arguments, width, is_dark, height) in _PICTURES.items():
            options = [*arguments, "--endpoint", hub.endpoint, "--output", str(page)]
            if run_command(["show", _NAME, *options]) != 0:
                return 1
            browser.open(page, width=width, height=height, is_dark=is_dark)
            with Image.open(io.BytesIO(browser.screenshot())) as picture:
                whole = picture.convert("RGB")
            output = ROOT / "docs" / "images" / f"{name}.png"
            whole.save(output, optimize=True)
            print(f"{output.relative_to(ROOT)}: {output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
