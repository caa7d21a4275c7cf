"""The command ``echolm``: assembles the verbs, and maps their errors to exit codes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from echolm_client.cli import add_subcommands as add_client_verbs
from echolm_client.cli.console import CLIENT_ERRORS, guarded
from echolm_client.cli.exit_codes import FAILED, SUMMARY, USAGE

from echolm.cli import build, estimate, examples, keys, learn_from, serve
from echolm.errors import ConfigurationError, EchoError, InvalidRequestError
from echolm.private import UMASK

ERRORS: Mapping[type[Exception], int] = {
    **CLIENT_ERRORS,
    ConfigurationError: USAGE,
    InvalidRequestError: USAGE,
    EchoError: FAILED,
}
"""Exit code for each error; a subclass has that of its nearest base."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. SystemExit if the command line is wrong."""

    def command() -> int:
        args = build_parser().parse_args(argv)
        if args.command != "build":  # others may run what it builds
            os.umask(UMASK)
        return int(args.func(args))

    return guarded(command, ERRORS)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each verb sets ``func``, which runs it."""
    parser = argparse.ArgumentParser(
        prog="echolm",
        description="Serve one logical LLM that learns when its small LLM will do.",
        epilog=SUMMARY,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for verb in (serve, keys, build, examples, learn_from, estimate):
        verb.add_subcommand(subparsers)
    add_client_verbs(subparsers)
    return parser
