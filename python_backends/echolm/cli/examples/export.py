"""``echolm examples export``: write examples to a file."""

from __future__ import annotations

import argparse

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import complain, note
from echolm_client.cli.exit_codes import FAILED, OK

from echolm.cli.examples.data import add_example_verb, opened, progress
from echolm.cli.examples.files import writing


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "export",
        "write examples to a file of JSON lines",
        "The exit code is 1 if there are none.",
    )
    parser.add_argument("file", help="the file, which is overwritten; - for standard output")
    parser.add_argument("--tenant", help="only this tenant's")


def run(args: argparse.Namespace) -> int:
    """Write the file; returns the exit code."""
    from echolm.examples import transfer

    done = 0
    with opened(args) as data, writing(args.file) as stream:
        header = transfer.Header(data.store.embedding_name, data.store.dimension)
        with progress("exporting", data.store.count()) as advance:
            for count in transfer.write(stream, header, data.store.scan(args.tenant)):
                done += count
                advance(count)
    if not done:
        of = "" if args.tenant is None else f" of tenant {args.tenant!r}"
        return complain(f"there are no examples{of}: nothing was exported", FAILED)
    note(f"exported {done} examples")
    return OK
