"""``echolm examples import``: put in examples from a file."""

from __future__ import annotations

import argparse

from echolm_client.cli.arguments import Subparsers

from echolm.cli.examples.copying import copy_into
from echolm.cli.examples.data import add_example_verb, opened
from echolm.cli.examples.files import reading


def add_subcommand(subparsers: Subparsers) -> None:
    """Add ``import``."""
    parser = add_example_verb(
        subparsers,
        "import",
        "put in examples from a file that export wrote",
        "Those that another embedding model had embedded are embedded anew. A data directory that "
        "does not exist is made.",
    )
    parser.add_argument("file", help="the file; - for standard input")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Copy the examples; returns the exit code."""
    from echolm.examples import transfer

    with opened(args, must_exist=False) as data, reading(args.file) as stream:
        header = transfer.read_header(stream)
        batches = transfer.batched(transfer.read(stream, header))
        return copy_into(data, "importing", batches, header, None)
