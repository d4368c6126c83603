"""The page as a whole: a head, a style sheet, a part for every example.

Rules:
* No script, and nothing from elsewhere: the policy in the head forbids both, so a text of a dataset
  could do nothing even if it were not escaped.
* Everything that comes from a dataset is escaped where it becomes HTML.
* It is as readable at 400 pixels as at 1280, and light or dark as the reader's system is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lerobot_grain import Repository
from lerobot_grain._cli.page.pictures import strip
from lerobot_grain._cli.page.places import places_table
from lerobot_grain._cli.page.plots import plots
from lerobot_grain._cli.page.style import STYLE
from lerobot_grain._inspection.overview.shown import Shown

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(repository: Repository, shown: Iterable[Shown], *, command: str) -> str:
    """Returns the page.

    Args:
      repository: of which it is.
      shown: at least one example or episode. Each is drawn and let go before the next one is
        asked for, because its pictures are large.
      command: that makes the page again.
    """
    name = repository.description
    episodes = repository.episodes
    facts = [
        f"LeRobotDataset {repository.info.codebase_version}",
        *([f"robot {repository.info.robot_type}"] if repository.info.robot_type else []),
        f"{episodes.num_episodes:,} episodes",
        f"{episodes.num_rows:,} rows",
        f"{repository.fps:g} fps",
    ]
    problems = "".join(
        f'<p class="problem">{escape(key)} cannot be read: {escape(why)}</p>'
        for key, why in repository.info.unreadable.items()
    )
    links, sections = [], []
    for each in shown:
        links.append(f'<a href="#{_anchor(each)}">{_title(each)}</a>')
        sections.append(_section(each))
    navigation = f'<nav aria-label="Examples">{"".join(links)}</nav>' if len(links) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(name)}</h1>"
        f'<ul class="facts">{"".join(f"<li>{escape(fact)}</li>" for fact in facts)}</ul>'
        f"{navigation}</header>{problems}<main>{''.join(sections)}</main>"
        f"<footer>Made with <code>{escape(command)}</code></footer></body></html>\n"
    )


def _anchor(shown: Shown) -> str:
    return f"episode-{shown.episode}" if shown.row is None else f"row-{shown.row}"


def _title(shown: Shown) -> str:
    return f"Episode {shown.episode:,}" if shown.row is None else f"Row {shown.row:,}"


def _section(shown: Shown) -> str:
    is_example = shown.row is not None
    where = (
        f"episode {shown.episode:,}, frame {shown.frame:,} of {shown.length:,}"
        if shown.frame is not None
        else f"{shown.length:,} frames"
    )
    task = shown.words.get("task")
    words = {key: text for key, text in shown.words.items() if key != "task"}
    words |= {each.key: f"{each.values[0, 0]:.6g}" for each in shown.curves if each.is_constant}
    curves = [each for each in shown.curves if not each.is_constant]
    parts = [
        f'<section id="{_anchor(shown)}"><h2>{_title(shown)} <small>{where}</small></h2>',
        f'<p class="task">{escape(task)}</p>' if task else "",
    ]
    if shown.pictures:
        strips = (strip(each, is_example=is_example) for each in shown.pictures)
        parts.append(f"<h3>Cameras</h3>{''.join(strips)}")
    if curves:
        drawn = (plots(each, is_example=is_example) for each in curves)
        legend = (
            ' <small><i class="pad"></i> padding, past an end of the episode</small>'
            if any(each.is_pad.any() for each in curves)
            else ""
        )
        parts.append(f'<h3>Over time{legend}</h3><div class="plots">{"".join(drawn)}</div>')
    if words:
        parts.append(f"<h3>Values</h3>{_words(words.items())}")
    parts.append(
        "<details><summary>Where it is stored</summary>"
        f"{''.join(map(places_table, shown.places))}</details></section>"
    )
    return "".join(parts)


def _words(words: Iterable[tuple[str, str]]) -> str:
    pairs = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in words
    )
    return f'<dl class="words">{pairs}</dl>'
