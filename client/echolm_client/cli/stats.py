"""``echolm stats``: show what the server counts."""

from __future__ import annotations

import argparse
import dataclasses
import json

from echolm_client._types import Sample, Stats
from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.connection import add_connection, connected
from echolm_client.cli.console import terminal_width, write
from echolm_client.cli.exit_codes import OK
from echolm_client.cli.table import Column, table


def add_subcommand(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``stats``."""
    parser = add_verb(
        subparsers,
        "stats",
        help="show what the server counts",
        description="Show what the server counts: inferences of each model, and EchoLM's metrics.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--metrics-url", metavar="URL", help="metrics page (default: port 8002 of the same host)"
    )
    add_connection(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Read the metrics page and print it; returns the exit code."""
    see = "--url and --metrics-url"
    with connected(args, see=see, metrics_url=args.metrics_url) as client:
        stats = client.stats()
    write(json.dumps(dataclasses.asdict(stats)) + "\n" if args.json else shown(stats))
    return OK


def shown(stats: Stats) -> str:
    """The statistics in columns."""
    # Buckets are for machines; count and sum of a histogram stay.
    samples = [sample for sample in stats.samples if not sample.name.endswith("_bucket")]
    models = sorted((model, f"{count}") for model, count in stats.inferences.items())
    metrics = sorted((_title(sample), _figure(sample.value)) for sample in samples)
    width = terminal_width()
    text = table((Column("MODEL", is_text=True), Column("INFERENCES")), models, width)
    if metrics:
        columns = (Column("METRIC", is_text=True), Column("VALUE"))
        text += "\n" + table(columns, metrics, width)
    return text


def _title(sample: Sample) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in sample.labels.items())
    return f"{sample.name} {labels}".rstrip()


def _figure(value: float) -> str:
    """The value as it is: a counter of millions does not become 1.23e+07."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.10g}"
