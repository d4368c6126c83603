"""The report of a command: lines of text and tables, aligned text for a pipe, drawn by rich for a
terminal.

Rules:
* Without a terminal nothing is wrapped, cut or colored, so the output is one for `grep`.
* Texts may come from a dataset: what is not printable, such as an escape sequence, is written as
  Python writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text in columns.

    Attributes:
      rows: all of one length.
      header: names of the columns; empty: the first column says what the row is.
      numbers: columns that are aligned at their right end.
      indent: before every line of plain text.
    """

    rows: Sequence[tuple[str, ...]]
    header: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    indent: str = "  "


Part = str | Table


def print_report(parts: Iterable[Part]) -> None:
    """Prints lines and tables to standard output."""
    if not sys.stdout.isatty():
        print("\n".join(plain_lines(parts)))
        return
    console = Console(file=sys.stdout, highlight=False)
    for part in parts:
        if isinstance(part, Table):
            console.print(_drawn(part))
        else:
            console.print(_styled(printable(part)), soft_wrap=True)


def plain_lines(parts: Iterable[Part]) -> list[str]:
    """Returns lines and tables as lines of plain text."""
    lines: list[str] = []
    for part in parts:
        lines += _aligned(part) if isinstance(part, Table) else [printable(part)]
    return lines


def printable(text: str) -> str:
    """Returns a text as it may be written to a terminal; its lines stay."""
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in text.split("\n"))


def _aligned(table: Table) -> list[str]:
    rows = [tuple(_cell(cell) for cell in row) for row in table.rows]
    if not rows:
        return []
    if table.header:
        rows.insert(0, table.header)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        table.indent
        + "  ".join(
            cell.rjust(width) if number in table.numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cell(text: str) -> str:
    return printable(text.replace("\n", " "))


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(
        box=box.SIMPLE_HEAD if table.header else None,
        show_header=bool(table.header),
        header_style="bold",
        padding=(0, 1) if table.header else (0, 1, 0, len(table.indent)),
    )
    columns = len(table.rows[0]) if table.rows else 0
    for number in range(columns):
        drawn.add_column(
            Text(table.header[number]) if table.header else "",
            justify="right" if number in table.numbers else "left",
            style="cyan" if number == 0 else "",
            no_wrap=number in table.numbers,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(Text(_cell(cell)) for cell in row))
    return drawn


def _styled(text: str) -> Text:
    """Returns lines with titles in bold: those that end with a colon, and are not indented."""
    found = Text()
    for number, line in enumerate(text.split("\n")):
        is_title = line.rstrip().endswith(":") and not line.startswith(" ")
        found.append(("\n" if number else "") + line, style="bold" if is_title else "")
    return found
