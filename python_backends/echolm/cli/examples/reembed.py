"""``echolm examples reembed``: copy the examples of another collection, embedded anew."""

from __future__ import annotations

import argparse
from contextlib import closing

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import CommandError

from echolm.cli.examples.data import add_example_verb, opened
from echolm.cli.examples.import_ import copy_into


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers, run, "reembed", "copy the examples of another collection, embedded anew"
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="COLLECTION",
        help="the other collection, which stays as it is",
    )


def run(args: argparse.Namespace) -> int:
    """Copy the examples; returns the exit code."""
    from echolm.examples import transfer
    from echolm.store.milvus import MilvusStore

    with opened(args) as data:
        retrieval = data.settings.retrieval
        if args.source == retrieval.collection:
            raise CommandError(
                "reembed: --from: expected another collection than retrieval.collection, got "
                f"{args.source!r}; give the new embeddings a collection of their own"
            )
        other = retrieval.model_copy(update={"collection": args.source})
        with closing(MilvusStore.existing(other)) as source:
            header = transfer.Header(source.embedding_name, source.dimension)
            return copy_into(data, "embedding", source.scan(), header, source.count())
