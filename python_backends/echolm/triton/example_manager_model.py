"""The model ``example_manager``: turns interactions into stored examples, off the path."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from echolm import contracts
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import EchoError, InvalidRequestError
from echolm.examples.admission import AdmissionPolicy, Verdict
from echolm.examples.off_peak import OffPeakReplay
from echolm.examples.replay import Replayed
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.examples.writer import ExampleWriter
from echolm.load.table import LoadTable
from echolm.primitives import Interaction
from echolm.settings.loading import load_settings
from echolm.store.milvus import LazyMilvusStore
from echolm.triton import codec
from echolm.triton.batched import BatchedModel
from echolm.triton.bls import BLSTextEmbedder
from echolm.triton.metrics import Metrics
from echolm.triton.runtime import Runtime
from echolm.wiring import (
    build_maintenance,
    build_replayer,
    build_retention,
    open_event_log,
    open_load_table,
    open_statistics,
)

logger = logging.getLogger("echolm")

_ADMITTED, _REASON = contracts.EXAMPLE_MANAGER.outputs
_GAUGES_EVERY_S = 2.0
_NICENESS = 10  # of this process: nobody waits for it, and requests need the cores
_FIRST_TRIM_S, _TRIM_EVERY_S = 900.0, 3_600.0


class TritonPythonModel(BatchedModel[Interaction, Verdict]):
    """Answers as soon as interactions are judged and logged; writing comes later."""

    def initialize(self, args: dict[str, str]) -> None:
        os.nice(_NICENESS)
        self._settings = settings = load_settings()
        embedding = EmbedderSpec.read(settings.embedding.model_dir)
        self._dimension = embedding.dimension
        self._policy = AdmissionPolicy(settings)
        self._store = LazyMilvusStore(settings.retrieval, embedding)
        self._log = open_event_log(settings)
        self._write_ahead_log = WriteAheadLog(
            settings.write_ahead_log_path, settings.examples.max_pending
        )
        self._writer = ExampleWriter(
            self._store, self._write_ahead_log, self._log, settings.examples
        )
        self._statistics = open_statistics(settings)
        owner = f"{socket.gethostname()}:{os.getpid()}"
        self._maintenance = build_maintenance(
            settings, self._store, self._statistics, self._log, owner
        )
        self._retention = build_retention(settings, self._statistics, self._log, owner)
        self._stopping = threading.Event()
        self._load: LoadTable | None = None
        self._embedder = BLSTextEmbedder(settings.retrieval.timeout_s)
        self._metrics = Metrics()
        self._runtime = Runtime(args["model_name"])
        self._runtime.spawn(self._metrics.run())
        self._runtime.spawn(self._gauges())
        self._runtime.spawn(self._maintain())
        self._runtime.spawn(self._trim())
        if settings.replay.off_peak:
            self._load = open_load_table(settings)
            self._runtime.spawn(self._off_peak(owner, self._load).run())

    def _off_peak(self, owner: str, load: LoadTable) -> OffPeakReplay:
        settings = self._settings
        replayer = build_replayer(
            settings, self._store, self._statistics, self._log, self._embedder
        )

        def in_flight() -> int:
            return sum(load.in_flight(llm.name) for llm in settings.llms)

        def count(one: Replayed) -> None:
            result = "improved" if one.improved else one.reason.replace(" ", "_")
            self._metrics.add("echolm_replays_total", result=result)
            self._metrics.add("echolm_replay_tokens_total", one.tokens)
            self._metrics.add("echolm_replay_seconds_total", one.seconds)

        return OffPeakReplay(replayer, self._log, settings.replay, in_flight, owner, count)

    def read(self, request: Any) -> list[Interaction]:
        interactions = [
            Interaction(**row) for row in codec.read_rows(request, contracts.EXAMPLE_MANAGER.inputs)
        ]
        for interaction in interactions:
            if interaction.embedding.shape != (self._dimension,):
                raise InvalidRequestError.of(
                    "embedding",
                    f"shape [n, {self._dimension}]",
                    f"shape [{len(interactions)}, {interaction.embedding.size}]",
                )
        return interactions

    def run(self, rows: Sequence[Interaction]) -> list[Verdict]:
        """Judge interactions, and keep those that are admitted for good.

        Together, since the write-ahead log waits for the disk once each time.
        """
        verdicts = [self._embedded(self._policy.judge(one), one) for one in rows]
        admitted = [v.interaction for v in verdicts if v.interaction is not None]
        ids = iter(self._writer.put(admitted) if admitted else [])
        verdicts = [
            Verdict(None, "queue_full") if v.admitted and next(ids) is None else v for v in verdicts
        ]
        for verdict in verdicts:
            self._metrics.add("echolm_admissions_total", result=verdict.reason or "admitted")
        return verdicts

    def tensors(self, results: Sequence[Verdict]) -> list[Any]:
        column = (len(results), 1)
        return [
            codec.tensor(_ADMITTED, [verdict.admitted for verdict in results], column),
            codec.tensor(_REASON, [verdict.reason for verdict in results], column),
        ]

    def _embedded(self, verdict: Verdict, submitted: Interaction) -> Verdict:
        """The verdict, with an embedding of what is stored: that of the text before redaction may
        give away what was redacted."""
        interaction = verdict.interaction
        if interaction is None or interaction.request == submitted.request:
            return verdict
        work = self._embedder.embed([interaction.request])
        try:
            embeddings = asyncio.run_coroutine_threadsafe(work, self._runtime.loop).result()
        except EchoError as error:
            logger.warning("a redacted interaction is refused, it cannot be embedded: %s", error)
            return Verdict(None, "not_embedded")
        return Verdict(dataclasses.replace(interaction, embedding=embeddings[0]))

    async def _gauges(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_GAUGES_EVERY_S)
            for name, counts in (
                ("echolm_example_writes_total", self._writer.counts),
                ("echolm_example_removals_total", self._maintenance.counts),
            ):
                for result, number in dataclasses.asdict(counts).items():
                    self._metrics.total(name, number, result=result)
            level = self._metrics.level
            level("echolm_examples_pending", self._writer.pending)
            level("echolm_examples_pending_limit", self._settings.examples.max_pending)
            up = True
            try:
                stored = await loop.run_in_executor(None, self._store.count)
                level("echolm_examples_stored", stored)
                level("echolm_example_bytes", self._statistics.totals()[1])
            except EchoError as error:
                up = False
                logger.warning("example store: %s", error)
            level("echolm_example_store_up", float(up))

    async def _maintain(self) -> None:
        """Keep the store within its limits, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.examples.maintenance_interval_s)
            try:
                await loop.run_in_executor(
                    None, self._maintenance.tidy, lambda: not self._stopping.is_set()
                )
            except Exception as error:  # the next round may work
                logger.warning("maintenance of the examples pauses: %s", error)

    async def _trim(self) -> None:
        """Remove old events from the learning log, again and again."""
        loop = asyncio.get_running_loop()
        self._metrics.add("echolm_learning_events_removed_total", 0)  # shown from the start on
        # Not at the start: what uses a snapshot saves it within 10 minutes, and shows that by it.
        await asyncio.sleep(_FIRST_TRIM_S)
        while True:
            try:
                removed = await loop.run_in_executor(None, self._retention.tidy)
                self._metrics.add("echolm_learning_events_removed_total", removed)
            except Exception as error:  # the next round may work
                logger.warning("the learning log is not trimmed: %s", error)
            await asyncio.sleep(_TRIM_EVERY_S)

    def finalize(self) -> None:
        self._stopping.set()
        self._writer.close()
        self._runtime.close()
        self._write_ahead_log.close()
        self._statistics.close()
        self._log.close()
        self._store.close()
        if self._load is not None:
            self._load.close()
