"""``echolm examples top``: list examples, the first of an order."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import get_args

from echolm_client.cli.arguments import Subparsers, positive
from echolm_client.cli.console import terminal_width, write
from echolm_client.cli.exit_codes import OK
from echolm_client.cli.table import Column, table

from echolm.cli.examples.data import add_example_verb, opened
from echolm.conversation import readable
from echolm.examples.statistics import Order

_COLUMNS = (
    *(Column(title) for title in ("id", "value", "uses", "ratings", "gain", "bytes")),
    Column("request", is_text=True),
)


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(subparsers, run, "top", "list examples, the first of an order")
    parser.add_argument(
        "--by",
        choices=get_args(Order),
        default="value",
        help="order of the list, the greatest first (default: %(default)s)",
    )
    parser.add_argument(
        "-n",
        "--number",
        type=positive,
        default=20,
        metavar="N",
        help="how many to list (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Print the list; returns the exit code."""
    with opened(args) as data:
        entries = data.statistics.ranked(args.by, args.number)
        stored = data.store.get([entry.id for entry in entries])
    requests = {example.id: readable(example.request) for example, _ in stored}
    if args.json:
        lines = [{**asdict(entry), "request": requests.get(entry.id)} for entry in entries]
        write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return OK
    rows = [
        (
            str(entry.id),
            f"{entry.value:.2f}",
            str(entry.uses),
            str(entry.ratings),
            f"{entry.gain:.3f}",
            str(entry.num_bytes),
            requests.get(entry.id, "(not in the store)"),
        )
        for entry in entries
    ]
    write(table(_COLUMNS, rows, terminal_width()))
    return OK
