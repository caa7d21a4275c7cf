"""``echolm prefer``: say which of two answers is better."""

from __future__ import annotations

import argparse

from echolm_client.cli.answers import NAMES, TOKEN_HELP, named, server_of
from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.connection import add_connection, connected
from echolm_client.cli.console import CommandError, complain, write
from echolm_client.cli.exit_codes import FAILED, OK


def add_subcommand(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``prefer``."""
    parser = add_verb(
        subparsers,
        "prefer",
        help="say which of two answers is better",
        description="Say which of two answers is better: of the last two of 'echolm ask', or of "
        "any two answers of one tenant.",
        epilog="Examples: 'echolm prefer last' prefers the last answer over the one before, "
        "'echolm prefer previous' the other way round, 'echolm prefer TOKEN1 TOKEN2' the answer "
        "of the first token; 'printf \"%%s\\n\" TOKEN1 TOKEN2 | echolm prefer - -' keeps the "
        "tokens off the command line.",
    )
    parser.add_argument("better", metavar="BETTER", help=f"the better answer: {TOKEN_HELP}")
    parser.add_argument(
        "over",
        metavar="OVER",
        nargs="?",
        help="the other answer, named in the same ways (default: the other one of 'last' and "
        "'previous')",
    )
    parser.add_argument("--tenant", help="refuse tokens if the answers are not this tenant's")
    add_connection(parser, default_url=None)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Send the preference; returns the exit code."""
    over = args.over
    if over is None:
        if args.better not in NAMES:
            raise CommandError(
                "prefer: expected two answers, since the better one is not 'last' or 'previous', "
                "got a single one; name the other one, too"
            )
        over = NAMES[1 - NAMES.index(args.better)]
    better, other = named(args.better), named(over)
    if better.token == other.token:
        raise CommandError("prefer: expected two answers, got the same one twice")
    with connected(args, args.url or server_of(better, other)) as client:
        if not client.prefer(better.token, over=other.token, tenant=args.tenant):
            return complain("the server did not accept the preference", FAILED)
    write("preferred\n")
    return OK
