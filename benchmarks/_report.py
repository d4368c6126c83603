"""Measurements -> medians, ratios and tables. Pure.

A ratio is the median of the ratios inside each repetition: what else the machine does then disturbs
both sides of it alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from _cases import Case

RATE, STEADY = "examples_per_second", "steady_examples_per_second"
FIRST = "first_batch_seconds"
# Kinds of measurement that run this package; with this ending, the package of another checkout.
OURS = ("ours", "plain", "hub0", "hub50", "s3_50", "gcs_50", "far50")
OTHER = " (other version)"
# Name of a ratio -> what is divided by what: kind and field.
_RATIOS = {
    "ours/limit": (("ours", RATE), ("limit", RATE)),
    "ours/naive": (("ours", RATE), ("naive", RATE)),
    "ours/plain": (("ours", RATE), ("plain", RATE)),
    "hub0/local": (("hub0", STEADY), ("ours", STEADY)),
    "hub50/local": (("hub50", STEADY), ("ours", STEADY)),
    **{f"{kind}/hub50": ((kind, RATE), ("hub50", RATE)) for kind in OURS[4:]},
    **{f"{kind}/hub50, first batch": ((kind, FIRST), ("hub50", FIRST)) for kind in OURS[4:]},
    **{kind + OTHER: ((kind, RATE), (kind + OTHER, RATE)) for kind in OURS},
}
_LATENCIES = {
    "hub0": "0 ms",
    "hub50": "50 ms",
    "s3_50": "50 ms, S3",
    "gcs_50": "50 ms, GCS",
    "far50": "50 ms, directory",
}
_MEDIANS = (RATE, STEADY, "open_seconds", FIRST, "memory_growth_bytes")

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def summarize(case: Case, results: Results) -> dict[str, Any]:
    """Returns the medians and ratios of one case.

    Args:
      case: what was measured.
      results: kind -> one result of `_measure` a repetition.
    """
    summary: dict[str, Any] = {"case": case.name, "medians": {}, "ratios": {}}
    for kind, repetitions in results.items():
        summary["medians"][kind] = {
            name: value for name in _MEDIANS if (value := _median(repetitions, name)) is not None
        }
        if "statistics" in repetitions[0]:
            summary["medians"][kind] |= _counts(repetitions)
    for name, ((kind, field), (other, other_field)) in _RATIOS.items():
        if kind in results and other in results:
            pairs = zip(results[kind], results[other], strict=True)
            summary["ratios"][name] = median(one[field] / two[other_field] for one, two in pairs)
    return summary


def table_of_medians(results: Mapping[str, Sequence[Mapping[str, float]]], *, digits: int) -> str:
    """Returns a table with a line for each kind of measurement and a column for each of its names.

    Args:
      results: kind -> one result a repetition.
      digits: that are shown of a median.
    """
    names = list(dict.fromkeys(name for each in results.values() for name in each[0]))
    lines = [f"| kind | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind, each in results.items():
        medians = [
            f"{median(result[name] for result in each):,.{digits}g}" if name in each[0] else ""
            for name in names
        ]
        lines.append(f"| {kind} | {' | '.join(medians)} |")
    return "\n".join(lines)


def _median(repetitions: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [result[name] for result in repetitions if result.get(name) is not None]
    return median(values) if values else None


def _counts(repetitions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = repetitions[0]
    examples, pictures_per_example = first["examples"], first["cameras"]
    statistics = [result["statistics"] for result in repetitions]
    return {
        "examples": examples,
        "clips": first["clips"],
        "clip_length": first["clip_length"],
        "cameras": first["cameras"],
        "batch_bytes": first["batch_bytes"],
        "budget_bytes": statistics[0]["budget_bytes"],
        "budget_peak_bytes": median(one["budget_peak_bytes"] for one in statistics),
        "pictures_per_row": median(one["pictures_decoded"] for one in statistics)
        / examples
        / (pictures_per_example or 1),
        "fetched_over_needed": median(
            one["bytes_fetched"] / max(1, one["bytes_needed"]) for one in statistics
        ),
        "requests_per_example": median(one["requests"] for one in statistics) / examples,
        "waited_for_fetch_seconds": median(one["waited_for_fetch_seconds"] for one in statistics),
        "waited_for_decode_seconds": median(one["waited_for_decode_seconds"] for one in statistics),
    }


def tables(cases: Sequence[Case], summaries: Sequence[Mapping[str, Any]]) -> str:
    """Returns all tables as Markdown, columns aligned for the screen."""
    pairs = list(zip(cases, summaries, strict=True))
    local = [_local_row(case, summary) for case, summary in pairs if "ours" in summary["medians"]]
    hub = [
        _hub_row(summary, kind, latency)
        for _, summary in pairs
        for kind, latency in _LATENCIES.items()
        if kind in summary["medians"]
    ]
    versions = [
        _versions_row(summary, kind)
        for _, summary in pairs
        for kind in OURS
        if kind + OTHER in summary["medians"]
    ]
    return "\n\n".join(_table(rows) for rows in (local, hub, versions) if rows)


def _local_row(case: Case, summary: Mapping[str, Any]) -> dict[str, str]:
    medians, ratios = summary["medians"], summary["ratios"]
    ours = medians["ours"]
    growth = ours.get("memory_growth_bytes")
    return {
        "local directory": case.name + (" (1 core)" if case.pinned else ""),
        "examples": f"{ours['examples']:,}",
        "clips": f"{ours['clips']:,} of {ours['clip_length']}",
        "limit, examples/s": _rate(medians, "limit"),
        "naive": _rate(medians, "naive"),
        "without windows": _rate(medians, "plain"),
        "ours": _rate(medians, "ours"),
        "ours / limit": _ratio(ratios.get("ours/limit"), case.target_of_limit),
        "ours / naive": _ratio(ratios.get("ours/naive"), case.target_of_naive),
        "ours / without windows": _ratio(ratios.get("ours/plain"), case.target_of_plain),
        "pictures decoded per row and camera": f"{ours['pictures_per_row']:.3f}"
        if ours["cameras"]
        else "",
        "open, s": f"{ours['open_seconds']:.2f}",
        "first batch, s": f"{ours['first_batch_seconds']:.2f}",
        "memory growth / budget in use / budget, MB": (
            "?" if growth is None else f"{growth / 1e6:,.0f}"
        )
        + f" / {ours['budget_peak_bytes'] / 1e6:,.0f} / {ours['budget_bytes'] / 1e6:,.0f}",
    }


def _versions_row(summary: Mapping[str, Any], kind: str) -> dict[str, str]:
    medians = summary["medians"]
    this, other = medians[kind], medians[kind + OTHER]
    return {
        "two versions": summary["case"],
        "kind": kind,
        "this, examples/s": _rate(medians, kind),
        "other": _rate(medians, kind + OTHER),
        "this / other, median of pairs": f"{summary['ratios'][kind + OTHER]:.2f}",
        "first batch, s": f"{this['first_batch_seconds']:.2f}",
        "first batch, other": f"{other['first_batch_seconds']:.2f}",
        "memory growth, MB": _megabytes(this),
        "memory growth, other": _megabytes(other),
    }


def _megabytes(medians: Mapping[str, Any]) -> str:
    growth = medians.get("memory_growth_bytes")
    return "?" if growth is None else f"{growth / 1e6:,.0f}"


def _hub_row(summary: Mapping[str, Any], kind: str, latency: str) -> dict[str, str]:
    found = summary["medians"][kind]
    return {
        "Hub on this machine": summary["case"],
        "latency": latency,
        "steady, examples/s": f"{found[STEADY]:,.1f}",
        "Hub / local, steady": _ratio(
            summary["ratios"].get(f"{kind}/local"), 0.9 if kind == "hub50" else None
        ),
        "bytes fetched / needed": f"{found['fetched_over_needed']:.3f} (<= 1.05)",
        "requests per example": f"{found['requests_per_example']:.4f} (<= "
        f"{found['cameras'] / 8:g})",
        "waited for fetch, s": f"{found['waited_for_fetch_seconds']:.2f}",
        "open, s": f"{found['open_seconds']:.2f}",
        "first batch, s": f"{found['first_batch_seconds']:.2f}",
    }


def _rate(medians: Mapping[str, Any], kind: str) -> str:
    return f"{medians[kind][RATE]:,.1f}" if kind in medians else ""


def _ratio(value: float | None, target: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if target is None else f" (>= {target:g})")


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    # A column that no row has something in would only be in the way.
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = [{name: name for name in names}, {name: "-" * widths[name] for name in names}, *rows]
    return "\n".join(
        "| " + " | ".join(line[name].ljust(widths[name]) for name in names) + " |" for line in lines
    )
