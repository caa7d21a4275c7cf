"""Tables on the terminal: checks, policies over seeds, policies of one comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TITLES = {
    "always_large": "large LLM alone",
    "always_small": "small LLM alone",
    "copy_nearest": "nearest answer",
    "semantic_cache": "semantic cache",
    "static_router": "static router",
    "small_with_examples": "small LLM with examples",
    "echolm": "EchoLM",
}


def print_checks(console: Console, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The checks of one experiment, as :func:`~echolm_lab.report.check.summarise` gives them."""
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("measure", "target", "measured", "holds"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in rows:
        sign = "≥" if row["kind"] == "at_least" else "≤"
        value = "none" if row["value"] is None else f"{row['value']:.3f}"
        spread = f" ± {row['std']:.3f}" if len(row["seeds"]) > 1 and row["std"] is not None else ""
        table.add_row(
            row["measure"],
            f"{sign} {row['target']:g}",
            value + spread,
            "yes" if row["holds"] else "no",
            style=None if row["holds"] else "red",
        )
    console.print(table)


def _by_policy(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of all seeds, by their policy."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for seed in figures.values():
        for row in seed["policies"]:
            by_name.setdefault(row["policy"], []).append(row)
    return by_name


def print_policies(console: Console, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Mean and spread over seeds of every policy."""
    table = Table(title="policies", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    keys = ("mean_score", "win_rate", "throughput", "offload_share")
    for column in ("", "score", "win rate", "req/s", "offload"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, rows in _by_policy(figures).items():
        cells = []
        for key in keys:
            values = [row[key] for row in rows]
            mean = sum(values) / len(values)
            spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
            cells.append(f"{mean:.3f}{spread}")
        table.add_row(name, *cells, style="bold" if name == "echolm" else None)
    console.print(table)


def print_trace(console: Console, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Mean and standard deviation over seeds of every policy under a recorded trace."""
    table = Table(
        title="trace",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    # Title and decimals of each column: narrow enough for 80 columns.
    columns = {
        "p50_s": ("p50 s", 1),
        "p99_s": ("p99 s", 1),
        "over_10_s": ("over 10 s", 0),
        "win_rate": ("win rate", 3),
        "offload_share": ("offload", 2),
    }
    for column in ("", *(title for title, _ in columns.values())):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, rows in _by_policy(figures).items():
        cells = []
        for key, (_, digits) in columns.items():
            values = [row[key] for row in rows]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        table.add_row(TITLES[name], *cells, style="bold" if name == "echolm" else None)
    console.print(table)


def print_comparison(console: Console, report: Mapping[str, Any]) -> None:
    """The policies of one comparison, and what the columns mean."""
    policies, past = report["policies"], report["past"]
    large = policies["always_large"]
    # Narrow enough for 80 columns, which is also what a pipe or a CI log has.
    table = Table(
        title="The same new requests, the same server",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for column in ("", "score", "win rate", "req/s", "gain", "p50 ms", "p99 ms", "offload"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in policies.items():
        table.add_row(
            TITLES[name],
            f"{row['mean_score']:.3f}",
            f"{row['win_rate']:.3f}",
            f"{row['throughput']:.1f}",
            f"{row['throughput'] / large['throughput']:.1f}",
            f"{row['p50_s'] * 1e3:.0f}",
            f"{row['p99_s'] * 1e3:.0f}",
            f"{row['offload_share']:.0%}",
            style="bold" if name == "echolm" else None,
        )
    console.print(table)
    console.print(
        f"Past: {past['history']} {past['of']}, then {past['learning']} of "
        f"EchoLM with {past['ratings']} ratings. {large['requests']} requests each. "
        f"{report['scores']} "
        "Win rate: (wins + ties/2) against the large LLM, "
        "0.5 is as good. req/s: at saturation; gain: over the large LLM alone. p50, p99: at "
        f"{report['latency_rate']:.1f} requests/s, 70% of what the large LLM alone can serve. "
        "Offload: share that it did not answer. Nearest answer: that of the most similar past "
        "request, copied."
    )
