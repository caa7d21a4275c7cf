"""``echolm examples import``: put in examples from a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import note
from echolm_client.cli.exit_codes import OK

from echolm.cli.examples.data import ExampleData, add_example_verb, opened, progress
from echolm.cli.examples.files import reading
from echolm.examples.events import CHANGE, change
from echolm.store.base import Stored

if TYPE_CHECKING:
    from echolm.examples.transfer import Header


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "import",
        "put in examples from a file that export wrote",
        "Those that another embedding model had embedded are embedded anew. A data directory that "
        "does not exist is made.",
    )
    parser.add_argument("file", help="the file; - for standard input")


def run(args: argparse.Namespace) -> int:
    """Copy the examples; returns the exit code."""
    from echolm.examples import transfer

    with reading(args.file) as stream:
        header = transfer.read_header(stream)
        batches = transfer.batched(transfer.read(stream, header))
        with opened(args, must_exist=False) as data:
            return copy_into(data, "importing", batches, header, None)


def copy_into(
    data: ExampleData,
    title: str,
    batches: Iterator[Sequence[Stored]],
    header: Header,
    total: int | None,
) -> int:
    """Copy examples into the store, embedded anew where another model had embedded them.

    Args:
        title, total: for the progress bar.
        header: what made the embeddings of the examples.
    """
    from echolm.examples import transfer

    embed = None
    if (header.embedding, header.dimension) != (data.store.embedding_name, data.store.dimension):
        from echolm.wiring.retrieval import build_text_embedder

        embed = build_text_embedder(data.settings)
    done = 0
    with progress(title, total) as advance:
        for examples in transfer.copy_into(data.store, batches, embed):
            data.log.append(CHANGE, change(examples))
            done += len(examples)
            advance(len(examples))
    data.statistics.follow(data.log)
    how = "" if embed is None else f", embedded anew by {data.store.embedding_name}"
    note(f"took in {done} examples{how}")
    return OK
