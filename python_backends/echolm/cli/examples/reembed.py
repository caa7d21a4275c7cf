"""``echolm examples reembed``: copy the examples of another collection, embedded anew."""

from __future__ import annotations

import argparse
from contextlib import closing

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import CommandError, note
from echolm_client.cli.exit_codes import OK

from echolm.cli.examples.data import add_example_verb, opened, progress
from echolm.examples.events import CHANGE, change


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
    from echolm.examples.transfer import copy_into
    from echolm.store.milvus import MilvusStore
    from echolm.wiring.retrieval import build_text_embedder

    with opened(args) as data:
        retrieval = data.settings.retrieval
        if args.source == retrieval.collection:
            raise CommandError(
                "reembed: --from: expected another collection than retrieval.collection, got "
                f"{args.source!r}; give the new embeddings a collection of their own"
            )
        other = retrieval.model_copy(update={"collection": args.source})
        embed = build_text_embedder(data.settings)
        with closing(MilvusStore.existing(other)) as source:
            done = 0
            with progress("embedding", source.count()) as advance:
                for examples in copy_into(data.store, source.scan(embeddings=False), embed):
                    data.log.append(CHANGE, change(examples))
                    done += len(examples)
                    advance(len(examples))
        data.statistics.follow(data.log)
    note(f"took in {done} examples, embedded anew by {data.store.embedding_name}")
    return OK
