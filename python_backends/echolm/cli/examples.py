"""The command line of ``echolm examples``; what it does is in :mod:`echolm.cli.example_commands`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from echolm.examples.statistics import Order


def add_subcommands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``examples`` with its own subcommands; sets ``func``."""
    description = "Look into the example store, take examples out, put them in, check it."
    parser = subparsers.add_parser("examples", help="the stored examples", description=description)
    parser.add_argument(
        "--config", type=Path, default=None, help="echolm.toml (default: $ECHOLM_CONFIG)"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="of the server")
    parser.set_defaults(func=_run)
    commands = parser.add_subparsers(dest="examples_command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text.capitalize()}."
        )
        return made

    stats = add("stats", "how many there are, and what became of the others")
    stats.add_argument("--json", action="store_true", help="for programs")
    top = add("top", "list examples, the first of an order")
    top.add_argument("--by", choices=get_args(Order), default="value")
    top.add_argument("-n", "--number", type=_positive, default=20)
    top.add_argument("--json", action="store_true", help="one JSON object a line")
    show = add("show", "show examples whole, as JSON")
    show.add_argument("id", type=int, nargs="+", help="as in example_ids of an answer")
    delete = add("delete", "delete examples for good")
    delete.add_argument("--id", type=int, action="append", default=[])
    delete.add_argument("--tenant", default=None, help="all of this tenant")
    delete.add_argument(
        "--match", default=None, metavar="REGEX", help="whose request or response contains this"
    )
    delete.add_argument("--yes", action="store_true", help="do not ask")
    export = add("export", "write examples to a file of JSON lines")
    export.add_argument("file", help="- for standard output")
    export.add_argument("--tenant", default=None, help="only this tenant's")
    add("import", "put in examples from a file that export wrote").add_argument(
        "file", help="- for standard input"
    )
    add("reembed", "copy examples of another collection, embedded anew").add_argument(
        "--from", dest="source", required=True, metavar="COLLECTION", help="the other collection"
    )
    check = add("check", "compare store and accounts, and look for requests that are stored twice")
    check.add_argument(
        "--repair",
        action="store_true",
        help="mend what differs; of a request that is stored twice the better answer stays. "
        "Without it the exit status is 1 if anything differs",
    )


def add_replay(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``replay``; sets ``func``."""
    parser = subparsers.add_parser(
        "replay",
        help="improve the examples that have most to gain",
        description="Let the LLMs of a running server answer the requests of the examples again "
        "that have most to gain, and keep what the judge of the configuration finds better. May "
        "be interrupted, and goes on where it ended.",
    )
    parser.add_argument(
        "--config", type=Path, default=None, help="echolm.toml (default: $ECHOLM_CONFIG)"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="of the server")
    parser.add_argument("--max-examples", type=_positive, default=100)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(func=_replay)


def _replay(args: argparse.Namespace) -> int:
    from echolm.cli import example_commands as commands

    return commands.replay(args)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    # Here, so that other commands start without Milvus' client.
    from echolm.cli import example_commands as commands

    return commands.run(args)
