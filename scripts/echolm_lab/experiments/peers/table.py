"""The figures of all peers on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_COLUMNS = {
    "req/s": "requests_per_s",
    "p50 ms": "p50_ms",
    "p99 ms": "p99_ms",
    "core-ms": "core_ms",
    "at rate": "core_ms_at_rate",
    "idle %": "idle_percent",
    "MiB": "memory_mib",
}
_NONE = "-"
_OF_THE_RATE = ("p50_ms", "p99_ms")


def cell(figure: Mapping[str, float]) -> str:
    """Mean and spread, to three digits or whole."""
    mean, spread = figure["mean"], figure["spread"]
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    return f"{mean:.{digits}f} ±{spread:.{digits}f}"


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table's cells: a peer a row; one that is missing has none but its name."""
    table = []
    for name, row in results.items():
        if "missing" in row:
            table.append((name, *(_NONE for _ in _COLUMNS), _NONE))
            continue
        cells = [
            "overloaded" if row["overloaded"] and key in _OF_THE_RATE else cell(row[key])
            for key in _COLUMNS.values()
        ]
        calls = f"{row['llm_calls']['mean']:.2f}" if "llm_calls" in row else _NONE
        table.append((name, *cells, calls))
    return table


def print_peers(
    console: Console, results: Mapping[str, Mapping[str, Any]], concurrency: int, rate: float
) -> None:
    """The table, what its columns are, and what each peer does and is."""
    table = Table(
        title="The same requests, the same dummy LLM, the same cores",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for column in ("", *_COLUMNS, "LLM calls"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cells in rows(results):
        table.add_row(*cells, style="bold" if cells[0].startswith("echolm") else None)
    # Wide enough for all columns, also in a pipe, whose width is taken for 80.
    console.width = max(console.width, 140)
    console.print(table)
    console.print(
        f"Mean ± half the range of the rounds. req/s, core-ms, LLM calls: {concurrency} in flight; "
        f"p50, p99, at rate: {rate:g} arrivals a second. core-ms: CPU time a request of the peer's "
        "processes, its store and its embedder, without the LLM and the load generator; at rate: "
        "the same at those arrivals, which includes idle %: of a core, while nothing is asked. "
        "MiB: resident memory of the same processes. LLM calls: a request; what a cache answers "
        "makes none."
    )
    told = set()
    for name, row in results.items():
        if row["does"] in told:
            continue
        told.add(row["does"])
        facts = ", ".join(filter(None, (row["version"], row["licence"])))
        console.print(f"{name}{f' ({facts})' if facts else ''}: {row['does']}", highlight=False)
        if "missing" in row:
            console.print(f"  not measured: {row['missing']}", highlight=False, markup=False)
