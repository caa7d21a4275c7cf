"""``echolm rate``: rate an answer."""

from __future__ import annotations

import argparse

from echolm_client.cli.answers import TOKEN_HELP, named, server_of
from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.connection import add_connection, connected
from echolm_client.cli.console import complain, write
from echolm_client.cli.exit_codes import FAILED, OK


def add_subcommand(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``rate``."""
    parser = add_verb(
        subparsers,
        "rate",
        help="rate an answer",
        description="Rate the last answer of 'echolm ask', or another one. A later rating of the "
        "same answer replaces an earlier one.",
    )
    parser.add_argument("score", type=float, help="from 0 (useless) to 1 (perfect)")
    parser.add_argument("--token", default="last", help=f"{TOKEN_HELP} (default: last)")
    parser.add_argument("--tenant", help="refuse the token if the answer is not this tenant's")
    add_connection(parser, default_url=None)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Send the rating; returns the exit code."""
    answer = named(args.token)
    with connected(args, args.url or server_of(answer)) as client:
        if not client.rate(answer.token, args.score, tenant=args.tenant):
            return complain("the server did not accept the rating", FAILED)
    write(f"rated {args.score:g}\n")
    return OK
