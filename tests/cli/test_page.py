"""The page of `lerobot-grain show`: what is on it, that nothing of a dataset becomes markup, and
that a real browser shows it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lerobot_grain as lg
from lerobot_grain._cli.main import _parser, main
from lerobot_grain._cli.page.pictures import _grey
from lerobot_grain._cli.page.plots import plots, ticks
from lerobot_grain._cli.show import _command
from lerobot_grain._inspection.overview.shown import Curves, Shown
from lerobot_grain._inspection.overview.shown_rows import first_rows, read_examples
from lerobot_grain.testing import Camera, Feature, write_dataset
from tests.support.browser import Browser, find_browser, running_browser
from tests.support.datasets import change_info

HOSTILE = "<script>document.title='caught'</script>\"'&"
LENGTHS = [14, 9]
WIDTHS = (1280, 400)
ARGUMENTS = {
    "examples": ["--examples", "3"],
    "row": ["--row", "3"],
    "episode": ["--episode", "1"],
    "windows": ["--row", "12", "--windows", "action=0,0.1,0.5", "top=-0.1,0"],
    "no windows": ["--row", "5", "--windows"],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of every kind of feature, whose texts are made to harm."""
    return write_dataset(
        tmp_path_factory.mktemp("page") / "data",
        episode_lengths=LENGTHS,
        fps=10,
        cameras=(
            Camera(key="top", height=64, width=96, codec="h264"),
            Camera(key="depth", height=48, width=80, kind="image", depth=True),
            Camera(key="picture", height=32, width=80, kind="image"),
        ),
        features={
            HOSTILE: Feature(dtype="float32", shape=(3,), names=(HOSTILE, "<b>", "x" * 90)),
            "many": Feature(dtype="float64", shape=(5, 8)),
            "done": Feature(dtype="bool"),
            "note": Feature(dtype="string"),
        },
        tasks=(HOSTILE, "t" * 300),
    ).directory


@pytest.fixture(scope="module")
def pages(
    directory: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Pages of that dataset, and of one without cameras and one with a camera that is broken."""
    made = tmp_path_factory.mktemp("pages")
    damaged = shutil.copytree(small_dataset, made / "damaged")
    (damaged / "videos/top/chunk-000/file-000.mp4").write_bytes(b"no video")
    bare = write_dataset(
        made / "bare", version="v2.1", episode_lengths=[1, 3], fps=5, cameras=()
    ).directory
    sources = {name: (directory, arguments) for name, arguments in ARGUMENTS.items()} | {
        "damaged": (damaged, ["--row", "0"]),
        "bare": (bare, ["--episode", "0"]),
    }
    found = {}
    for name, (source, arguments) in sources.items():
        found[name] = made / f"{name}.html"
        assert main(["show", str(source), *arguments, "--output", str(found[name])]) == 0
    return found


class _Reader(HTMLParser):
    """Collects the elements of a page, checks that they are closed, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


NAMES = [*ARGUMENTS, "damaged", "bare"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_and_needs_nothing_else(name: str, pages: dict[str, Path]) -> None:
    html = pages[name].read_text()
    page = _Reader(html)
    assert page.open == []
    assert "http:" not in html
    assert "https:" not in html
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        assert not [
            value
            for key in ("src", "href")
            if (value := attributes.get(key)) and not value.startswith(("data:", "#"))
        ]
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[:2] == [1, 2]
    assert max(np.diff(headings), default=0) <= 1, "no level is left out"


def test_texts_of_a_dataset_are_texts(pages: dict[str, Path]) -> None:
    page = _Reader(pages["row"].read_text())
    assert HOSTILE in page.text
    assert "<b>" in page.text
    labels = [attributes["aria-label"] or "" for tag, attributes in page.elements if tag == "svg"]
    assert any(HOSTILE in label for label in labels)


def test_pictures_are_those_of_the_stream(pages: dict[str, Path], directory: Path) -> None:
    page = _Reader(pages["windows"].read_text())
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [image["alt"] for image in images] == [
        "top at \N{MINUS SIGN}0.10 s",
        "top at 0 s",
        "depth at 0 s",
        "picture at 0 s",
    ]
    (example,) = lg.read_rows(
        lg.open_repository(directory), 12, features=["top"], delta_timestamps={"top": [-0.1, 0.0]}
    )
    for number, image in enumerate(images[:2]):
        encoded = base64.b64decode((image["src"] or "").partition(",")[2])
        shown = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
        # As near as JPEG is to it, and nearer than to the other one.
        distances = [np.abs(shown.astype(int) - other).mean() for other in example["top"]]
        assert distances[number] == min(distances) < 25


def test_pads_are_shaded_and_said(pages: dict[str, Path]) -> None:
    # Frame 12 of 14: the window reaches 4 frames further than there are any.
    html = pages["windows"].read_text()
    assert "1 frame is padding" in html
    assert html.count('<rect class="pad"') == 1
    # Row 3 has no second before it.
    html = pages["row"].read_text()
    assert html.count('class="frame padded"') == 3 * 2
    assert "padding, past an end of the episode" in html


def test_the_chain_of_locate_is_on_the_page(pages: dict[str, Path], directory: Path) -> None:
    found = lg.locate(lg.open_repository(directory), 3)
    start, stop = found.cameras["top"].byte_range or (0, 0)
    text = _Reader(pages["row"].read_text()).text
    assert f"{stop - start:,} bytes, [{start}, {stop})" in text
    assert found.path in text
    assert found.cameras["top"].path in text


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(pages: dict[str, Path]) -> None:
    html = pages["damaged"].read_text()
    assert "This camera cannot be read: " in html
    assert "<svg" in html
    assert "<img" not in html


def test_many_dimensions_are_drawn_eight_at_a_time(pages: dict[str, Path]) -> None:
    text = _Reader(pages["episode"].read_text()).text
    assert "24 to 31 of 40" in text
    assert "8 further dimensions are not drawn." in text


def test_the_command_says_what_it_wrote(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert main(["show", str(directory), "--row", "3", "--output", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["row"] == 3
    assert path.is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_without_a_page_the_chain_is_printed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(directory), "--examples", "2", "--seed", "1", "--json"]) == 0
    rows = [each["row"] for each in json.loads(capsys.readouterr().out)]
    stream = lg.LeRobotIterDataset(directory, features=["index"], shuffle=lg.Shuffle(seed=1))
    examples = iter(stream)
    assert rows == [int(next(examples)["index"]) for _ in range(2)]
    examples.close()
    assert main(["show", str(directory), "--episode", "1", "--frames", "2"]) == 0
    assert re.findall(r", row (\d+)\n", capsys.readouterr().out) == ["14", "22"]


def test_open_makes_a_file_and_opens_it(
    small_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def open_(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", open_)
    arguments = ["show", str(small_dataset), "--row", "0", "--open"]
    assert main(arguments) == 0
    (path,) = tmp_path.rglob("*.html")
    assert path.parent.stat().st_mode & 0o077 == 0
    assert opened == [path.as_uri()]
    assert str(path) in capsys.readouterr().out
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    assert main(arguments) == 1
    assert "found no browser to open" in capsys.readouterr().err


def test_odd_metadata_is_shown(small_dataset: Path, tmp_path: Path) -> None:
    source = shutil.copytree(small_dataset, tmp_path / "data")
    entry = {"dtype": "<b>complex</b>", "shape": [1], "names": None}

    def change(info: dict[str, Any]) -> None:
        # Half a surrogate pair.
        info["robot_type"] = "\ud83d x"
        info["features"]["<i>odd"] = entry

    change_info(source, change)
    path = tmp_path / "page.html"
    assert main(["show", str(source), "--row", "0", "--output", str(path)]) == 0
    html = path.read_text()
    assert "robot \\ud83d x" in html
    assert '<p class="problem">&lt;i&gt;odd cannot be read: ' in html
    assert "<b>complex" not in html


def test_a_page_of_many_examples_holds_few(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []

    def noting(repository: lg.Repository, rows: list[int], **arguments: Any) -> list[Shown]:
        read.append(rows)
        return read_examples(repository, rows, **arguments)

    monkeypatch.setattr("lerobot_grain._cli.show.read_examples", noting)
    path = tmp_path / "page.html"
    arguments = ["--examples", "6", "--windows", "--output", str(path), "--json"]
    assert main(["show", str(small_dataset), *arguments]) == 0
    rows = first_rows(lg.open_repository(small_dataset), count=6, seed=0)
    assert read == [rows[:4], rows[4:]]
    found = re.findall(r'<section id="row-(\d+)"', path.read_text())
    assert list(map(int, found)) == rows


def test_the_command_on_the_page_makes_it_again() -> None:
    arguments = ["show", "org/name", "--endpoint", "http://hub", "--row", "1", "--frames", "3"]
    arguments += ["--windows", "action=0.0,12.3456789", "--output", "page.html"]
    words = shlex.split(_command(_parser().parse_args(arguments)))
    assert words[0] == "lerobot-grain"
    assert vars(_parser().parse_args(words[1:])) == vars(_parser().parse_args(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "99"], "row 99: expected 0 <= row < 36"),
        (["--row", "0", "--windows", "action=0"], "--windows belongs to a page; add --output"),
        (["--episode", "0", "--windows", "action=0", "--open"], "an episode is shown whole"),
        (["--episode", "9"], "there is no episode 9; there are 0 to 4"),
        (["--examples", "1", "--camera", "side"], "there is no camera 'side'; there are top"),
        (["--output", "/nowhere/at/all.html"], "--output /nowhere/at/all.html: there is no dir"),
    ],
)
def test_what_cannot_be_shown(
    small_dataset: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["show", str(small_dataset), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


# --- curves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.5, 1]),
        (-1, 1, 5, [-1, -0.5, 0, 0.5, 1]),
        (0.1, 0.9, 5, [0.2, 0.4, 0.6, 0.8]),
        (-1e-6, 1e-6, 3, [-1e-6, 0, 1e-6]),
        (0, 12345, 4, [0, 5000, 10000]),
    ],
)
def test_ticks(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most=most) == pytest.approx(expected, abs=1e-12)


def test_curves_stop_where_there_is_no_number() -> None:
    curves = Curves(
        key="state",
        names=("a", "b"),
        seconds=np.arange(5) / 10,
        values=np.array([[0, 1], [1, 1], [np.nan, 1], [1, 1], [0, np.inf]], np.float64),
        is_pad=np.zeros(5, np.bool_),
    )
    html = plots(curves, is_example=False)
    lines = re.findall(r'class="c(\d)" d="([^"]*)"', html)
    assert [(number, path.count("M"), path.count("L")) for number, path in lines] == [
        ("0", 2, 2),
        ("1", 1, 3),
    ]
    assert "nan" not in "".join(path for _, path in lines)
    nothing = Curves(
        key="state",
        names=("a",),
        seconds=np.zeros(1),
        values=np.full((1, 1), np.nan),
        is_pad=np.zeros(1, np.bool_),
    )
    assert "a has no finite value" in plots(nothing, is_example=True)


def _curve(*values: float) -> Curves:
    return Curves(
        key="state",
        names=("a",),
        seconds=np.arange(len(values)) / 10,
        values=np.array(values, np.float64)[:, None],
        is_pad=np.zeros(len(values), np.bool_),
    )


@pytest.mark.parametrize(
    "values", [(-1.7e308, 1.7e308), (0.0, 1.0, 1.7e308), (0.0, 5e-323), (1e16, 1e16 + 2)]
)
def test_extreme_values_can_be_drawn(values: tuple[float, ...]) -> None:
    html = plots(_curve(*values), is_example=False)
    (path,) = re.findall(r'class="c0" d="([^"]*)"', html)
    drawn = [float(each) for each in re.findall(r"[ML][\d.]+ ([-\d.]+)", path)]
    assert len(drawn) == sum(abs(value) < 1e300 for value in values)
    assert all(0 <= each <= 1000 for each in drawn)


def test_labels_differ_where_values_have_a_large_offset() -> None:
    html = plots(_curve(1_700_000_000.0, 1_700_000_001.0), is_example=False)
    (labels,) = re.findall(r'<div class="ys" aria-hidden="true">(.*?)</div>', html)
    texts = re.findall(r">([^<]+)</span>", labels)
    assert len(texts) == len(set(texts)) > 2
    assert "1700000000.5" in texts


@pytest.mark.filterwarnings("error")
def test_depth_without_an_end_is_black() -> None:
    depth = np.array([[0.5, 1.0, np.inf, np.nan, 0.0, -1.0]], np.float32)[..., None]
    assert _grey(depth, 0.5, 1.0).tolist() == [[255, 40, 0, 0, 0, 0]]
    assert _grey(depth[:, :1], 0.5, 0.5).tolist() == [[255]]


# --- a real browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with running_browser(path) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_a_browser_shows_the_page(name: str, pages: dict[str, Path], browser: Browser) -> None:
    for width in WIDTHS:
        browser.open(pages[name], width=width)
        assert browser.complaints == []
        assert [each for each in browser.requested if not each.startswith(("file:", "data:"))] == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        # Nothing is cut off, either: what is wide scrolls where it stands.
        assert browser.evaluate(
            "[...document.querySelectorAll('main *')].every("
            f"each => each.getBoundingClientRect().right <= {width})"
        )
        assert browser.evaluate("document.title") != "caught"


def test_a_browser_shows_it_light_and_dark(pages: dict[str, Path], browser: Browser) -> None:
    grounds = []
    for is_dark in (False, True):
        browser.open(pages["row"], width=1280, is_dark=is_dark)
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(17, 20, 24)"]


def test_the_browser_would_tell(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><img src='nothing.png'><div style='width:3000px'>x</div>"
        "<script>nothing()</script>"
    )
    browser.open(page, width=400)
    assert any("nothing is not defined" in each for each in browser.complaints)
    assert any(each.startswith("not loaded") for each in browser.complaints)
    assert browser.evaluate("document.documentElement.scrollWidth") > 400
    assert not browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
