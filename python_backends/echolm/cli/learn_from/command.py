"""Read a log, tell the cost, ask, store, replay, report."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from echolm_client.cli.console import write
from echolm_client.cli.exit_codes import FAILED

from echolm.cli.examples.data import ExampleData, opened, progress, write_report
from echolm.cli.learn_from.options import prices_of
from echolm.cli.learn_from.reading import Read, read_log
from echolm.cli.learn_from.report import confirmed, report_replay

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    import numpy as np
    from numpy.typing import NDArray

    from echolm.embedding.texts import TextEmbedder
    from echolm.past_traffic.record import Logged
    from echolm.past_traffic.replay import PastReplay
    from echolm.past_traffic.state import PastTrafficState
    from echolm.past_traffic.storing import PastExamples
    from echolm.wiring.past_traffic import PastLearning

_MAINTAINED_EVERY = 64  # batches


def run(args: argparse.Namespace) -> int:
    """Read, tell the cost, ask, store, replay and report; returns the exit code."""
    from echolm.wiring.past_traffic import only_process

    with opened(args, must_exist=False) as data, closing(only_process(data.settings)):
        return asyncio.run(_learn(args, data))


class _Embedder:
    """The embedder of this process, as judges want it."""

    def __init__(self, embed_texts: TextEmbedder) -> None:
        self._embed_texts = embed_texts

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embed_texts(texts)


async def _learn(args: argparse.Namespace, data: ExampleData) -> int:
    from echolm.wiring.past_traffic import (
        build_past_examples,
        build_past_learning,
        open_past_traffic_state,
    )
    from echolm.wiring.retrieval import build_text_embedder

    settings = data.settings
    prices = prices_of(args, settings)
    embed = build_text_embedder(settings)
    learning = build_past_learning(settings, data.log)
    examples = build_past_examples(settings, data.store, data.log, embed, learning)
    with closing(open_past_traffic_state(settings)) as state:
        read = read_log(args, settings)
        figures: dict[str, Any] = {"log": read.figures}
        lines = read.lines
        replay = None
        if not args.no_replay and read.usable:
            from echolm.past_traffic.cost import Budget
            from echolm.wiring.llms import build_endpoints
            from echolm.wiring.past_traffic import build_past_replay

            budget = Budget(args.budget, prices, settings.judge_llm.name)
            endpoints = build_endpoints(settings)
            replay = build_past_replay(
                settings,
                examples,
                learning,
                state,
                budget,
                endpoints,
                _Embedder(embed),
                read.fingerprint,
                args.concurrent,
                data.store.dimension,
            )
            await replay.probe()
            replay.recall()
            if not confirmed(args, read, replay):
                write("nothing was stored or replayed\n")
                return FAILED
        learning.learner.catch_up()
        stored = _store(data, examples, learning, read, state)
        figures["stored"] = dict(stored)
        lines += [f"{'stored' if k == 0 else '':12}{n} {why}" for k, (why, n) in enumerate(stored)]
        statistics = _measure(data, examples, learning, read)
        figures["request_statistics"] = statistics
        if statistics:
            lines.append(f"statistics  of {statistics['count']} requests")
        if replay is not None:
            await _replay(replay, read.sample)
            report_replay(args, replay, read, figures, lines)
    return write_report(args, figures, lines)


def _store(
    data: ExampleData,
    examples: PastExamples,
    learning: PastLearning,
    read: Read,
    state: PastTrafficState,
) -> list[tuple[str, int]]:
    """Store what is not stored yet; gives what became of all interactions."""
    from echolm.learning.request_sample import NewestStatistics
    from echolm.wiring.examples import build_maintenance

    newest = NewestStatistics(data.store.dimension)
    newest.statistics = learning.featurizer.statistics
    parts = (data.store, data.statistics, data.log)
    owner = f"learn-from:{read.fingerprint}"
    maintenance = build_maintenance(data.settings, *parts, owner, newest)
    with progress("storing", read.usable) as advance:
        for number, count in enumerate(examples.store_log(read.log, read.fingerprint, state), 1):
            advance(count)
            if number % _MAINTAINED_EVERY == 0:
                maintenance.run()
    maintenance.run()
    return Counter(state.stored(read.fingerprint)[1]).most_common()


def _measure(
    data: ExampleData, examples: PastExamples, learning: PastLearning, read: Read
) -> dict[str, Any] | None:
    """Put statistics of the log's requests into the learning log, if it has none of as many."""
    from echolm.learning.request_statistics import REQUEST_STATISTICS

    learning.learner.catch_up()
    newest = learning.featurizer.statistics
    if len(read.measured) <= newest.count:
        return None
    with progress("measuring", None):
        statistics = examples.measure(read.measured, newest.version + 1)
    if statistics is None:
        return None
    data.log.append(REQUEST_STATISTICS, statistics.body())
    learning.learner.catch_up()
    return {"version": statistics.version, "count": statistics.count}


async def _replay(replay: PastReplay, sample: Sequence[Logged]) -> None:
    with progress("replaying", len(sample)) as advance:
        async for count in replay.run(sample):
            advance(count)
