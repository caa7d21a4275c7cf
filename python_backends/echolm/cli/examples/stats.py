"""``echolm examples stats``: how many examples there are, and what became of the others."""

from __future__ import annotations

import argparse

from echolm_client.cli.arguments import Subparsers

from echolm.cli.examples.data import add_example_verb, opened, write_report


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers, run, "stats", "show how many examples there are, and what became of the others"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the figures; returns the exit code."""
    with opened(args) as data:
        count, num_bytes = data.statistics.totals()
        removals = data.statistics.removals()
        limits = data.settings.examples
        figures = {
            "stored": data.store.count(),
            "with_statistics": count,
            "bytes": num_bytes,
            "max_stored": limits.max_stored,
            "max_stored_bytes": limits.max_stored_bytes,
            "pending": len(data.write_ahead_log),
            "removed": removals,
        }
    lines = [
        f"stored    {figures['stored']} of at most {limits.max_stored}",
        f"bytes     {num_bytes} of at most {limits.max_stored_bytes}",
        f"pending   {figures['pending']} admitted, not stored yet",
        *(f"removed   {number} {reason}" for reason, number in sorted(removals.items())),
    ]
    return write_report(args, figures, lines)
