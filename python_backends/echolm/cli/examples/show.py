"""``echolm examples show``: show examples whole."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime, timezone

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import complain, write
from echolm_client.cli.exit_codes import FAILED, OK

from echolm.cli.examples.data import add_example_verb, opened
from echolm.store.base import NEVER


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "show",
        "show examples whole, as JSON",
        "The exit code is 1 if one is missing.",
    )
    parser.add_argument("id", type=int, nargs="+", help="as in example_ids of an answer")


def run(args: argparse.Namespace) -> int:
    """Print the examples; returns the exit code."""
    code = OK
    with opened(args) as data:
        stored = {example.id: example for example, _ in data.store.get(args.id)}
        for id in args.id:
            example = stored.get(id)
            if example is None:
                code = complain(f"no example has the id {id}", FAILED)
                continue
            statistics = data.statistics.get(id)
            expires_at_ms = example.expires_at_ms
            shown = {
                **asdict(example),
                "created_at": _time(example.created_at_ms),
                "expires_at": None if expires_at_ms >= NEVER else _time(expires_at_ms),
                "statistics": statistics and asdict(statistics),
            }
            write(json.dumps(shown, ensure_ascii=False, indent=1) + "\n")
    return code


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, timezone.utc).isoformat(timespec="seconds")
