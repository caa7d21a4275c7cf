"""``echolm examples replay``: improve the examples that have most to gain."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import Subparsers, positive

from echolm.cli.examples.data import ExampleData, add_example_verb, opened, progress, write_report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "replay",
        "improve the examples that have most to gain",
        "The LLMs of a running server answer the requests of those examples again, and what the "
        "judge of the configuration finds better is kept. It may be interrupted, and goes on "
        "where it ended.",
    )
    parser.add_argument(
        "-n",
        "--number",
        type=positive,
        default=100,
        metavar="N",
        help="most examples to replay (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Replay and print what it brought and cost; returns the exit code."""
    with opened(args) as data:
        return asyncio.run(_replay(data, args))


async def _replay(data: ExampleData, args: argparse.Namespace) -> int:
    from echolm.examples.replay import ReplayCost
    from echolm.wiring.examples import build_replayer
    from echolm.wiring.retrieval import build_text_embedder

    class Embedder:
        """The embedder of this process, as judges want it."""

        embed_texts = build_text_embedder(data.settings)

        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return self.embed_texts(texts)

    replayer = build_replayer(data.settings, data.store, data.statistics, data.log, Embedder())
    cost = ReplayCost()
    reasons: Counter[str] = Counter()
    with progress("replaying", args.number) as advance:
        async for replayed in replayer.run(args.number):
            cost.add(replayed)
            if replayed.reason:
                reasons[replayed.reason] += 1
            advance(1)
    lines = [
        f"replayed    {cost.examples} examples, {cost.improved} improved",
        *(f"            {number} {reason}" for reason, number in reasons.most_common()),
        f"cost        {cost.candidates} answers, {cost.tokens} tokens, {cost.seconds:.0f} s",
    ]
    return write_report(args, {**asdict(cost), "not_improved": dict(reasons)}, lines)
