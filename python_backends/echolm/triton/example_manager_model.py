"""The model ``example_manager``: turns interactions into stored examples, off the path."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import EchoError, InvalidRequestError
from echolm.examples.admission import AdmissionPolicy, AdmissionResult
from echolm.examples.maintenance import Maintenance, MaintenanceCounts
from echolm.examples.off_peak import OffPeakReplay
from echolm.examples.replay import Replayed, Replayer
from echolm.examples.statistics import StatisticsTable
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.examples.writer import ExampleWriter, WriterCounts
from echolm.learning.retention import Retention
from echolm.load.table import LoadTable
from echolm.load.tracker import LoadTracker
from echolm.primitives import Interaction
from echolm.settings.loading import load_settings
from echolm.store.milvus import MilvusStore
from echolm.triton import codec
from echolm.triton.bls import BLSTextEmbedder
from echolm.triton.metrics import Metrics
from echolm.triton.runtime import Runtime
from echolm.wiring import (
    build_endpoints,
    build_judge,
    build_llm_clients,
    needed_snapshots,
    open_event_log,
)

logger = logging.getLogger("echolm")

_ADMITTED, _REASON = contracts.EXAMPLE_MANAGER.outputs
_GAUGES_EVERY_S = 2.0
_NICENESS = 10  # of this process: nobody waits for it, and requests need the cores
_FIRST_TRIM_S, _TRIM_EVERY_S = 900.0, 3_600.0


class TritonPythonModel:
    """Answers as soon as interactions are judged and logged; writing comes later."""

    def initialize(self, args: dict[str, str]) -> None:
        os.nice(_NICENESS)
        self._settings = settings = load_settings()
        embedding = EmbedderSpec.read(settings.embedding.model_dir)
        self._dimension = embedding.dimension
        self._policy = AdmissionPolicy(settings)
        self._store = MilvusStore(
            settings.retrieval, embedding.name, embedding.dimension, wait=True
        )
        self._log = open_event_log(settings)
        self._write_ahead_log = WriteAheadLog(
            settings.write_ahead_log_path, settings.examples.max_pending
        )
        self._writer = ExampleWriter(
            self._store, self._write_ahead_log, self._log, settings.examples
        )
        self._statistics = StatisticsTable(
            settings.statistics_path, settings.relative_costs, settings.examples.value_decay
        )
        owner = f"{socket.gethostname()}:{os.getpid()}"
        self._maintenance = Maintenance(
            self._store,
            self._statistics,
            self._log,
            settings.examples,
            owner,
            settings.routing.similarity_saturation,
        )
        self._retention = Retention(
            self._log,
            settings.learning.retention_days if settings.learning.snapshot_every else 0.0,
            needed_snapshots(settings),
            lambda: self._statistics.save(self._log),
            owner,
        )
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
            self._load = LoadTable(
                settings.load_table_path,
                [llm.name for llm in settings.llms],
                settings.routing.load_half_life_s,
            )
            self._runtime.spawn(self._off_peak(owner, self._load).run())

    def _off_peak(self, owner: str, load: LoadTable) -> OffPeakReplay:
        settings = self._settings
        targets = build_endpoints(settings, build_llm_clients(settings))
        # Of its own: what replay asks of the LLMs is no load that it has to make room for.
        judge = build_judge(settings, targets, self._embedder, LoadTracker())
        assert judge is not None, "the settings ask for one"
        replayer = Replayer(self._store, self._statistics, self._log, targets, judge, settings)

        def in_flight() -> int:
            return sum(load.in_flight(name) for name in targets)

        def count(one: Replayed) -> None:
            result = "improved" if one.improved else one.reason.replace(" ", "_")
            self._metrics.add("echolm_replays_total", result=result)
            self._metrics.add("echolm_replay_tokens_total", one.tokens)
            self._metrics.add("echolm_replay_seconds_total", one.seconds)

        return OffPeakReplay(replayer, self._log, settings.replay, in_flight, owner, count)

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        submitted: dict[int, list[Interaction]] = {}
        for i, request in enumerate(requests):
            try:
                submitted[i] = self._read(request)
            except Exception as problem:
                responses[i] = codec.error_response(problem)
        try:
            # Together, since the write-ahead log waits for the disk once each time.
            results = self._admit(
                [one for interactions in submitted.values() for one in interactions]
            )
        except Exception as problem:
            return [response or codec.error_response(problem) for response in responses]
        for i, interactions in submitted.items():
            n = len(interactions)
            rows, results = results[:n], results[n:]
            responses[i] = pb_utils.InferenceResponse(
                [
                    codec.tensor(_ADMITTED, [r.admitted for r in rows], (n, 1)),
                    codec.tensor(_REASON, [r.reason for r in rows], (n, 1)),
                ]
            )
        return responses

    def _admit(self, interactions: list[Interaction]) -> list[AdmissionResult]:
        """Judge interactions and keep those that are admitted for good."""
        results = [self._embedded(self._policy.judge(one), one) for one in interactions]
        admitted = [r.interaction for r in results if r.interaction is not None]
        ids = iter(self._writer.put(admitted) if admitted else [])
        results = [
            AdmissionResult(None, "queue_full") if r.admitted and next(ids) is None else r
            for r in results
        ]
        for result in results:
            self._metrics.add("echolm_admissions_total", result=result.reason or "admitted")
        return results

    def _embedded(self, result: AdmissionResult, submitted: Interaction) -> AdmissionResult:
        """The result, with the embedding of the text that is stored, which may be redacted."""
        interaction = result.interaction
        if interaction is None or interaction.request == submitted.request:
            return result
        work = self._embedder.embed([interaction.request])
        try:
            embeddings = asyncio.run_coroutine_threadsafe(work, self._runtime.loop).result()
        except EchoError as error:
            logger.warning("a redacted interaction is refused, it cannot be embedded: %s", error)
            return AdmissionResult(None, "not_embedded")
        return AdmissionResult(dataclasses.replace(interaction, embedding=embeddings[0]))

    def _read(self, request: Any) -> list[Interaction]:
        columns = {}
        for spec in contracts.EXAMPLE_MANAGER.inputs:
            array = codec.read(request, spec.name)
            if array is None:
                raise InvalidRequestError.of(spec.name, f"a {spec.datatype} tensor", "none")
            columns[spec.name] = array
        embeddings = columns.pop("embedding")
        if embeddings.shape[-1] != self._dimension:
            raise InvalidRequestError.of(
                "embedding", f"shape [n, {self._dimension}]", f"shape {list(embeddings.shape)}"
            )
        interactions = []
        for row in range(embeddings.shape[0]):
            cells = {name: array.reshape(-1)[row] for name, array in columns.items()}
            quality, help_probability = (
                float(cells.pop("quality")),
                float(cells.pop("help_probability")),
            )
            texts = {name: codec.decode(value, name) for name, value in cells.items()}
            interactions.append(
                Interaction(
                    embedding=np.array(embeddings[row], dtype=np.float32),
                    quality=quality,
                    help_probability=help_probability,
                    **texts,
                )
            )
        return interactions

    async def _gauges(self) -> None:
        loop = asyncio.get_running_loop()
        written, removed = WriterCounts(), MaintenanceCounts()
        while True:
            await asyncio.sleep(_GAUGES_EVERY_S)
            written = self._grown("echolm_example_writes_total", written, self._writer.counts)
            removed = self._grown(
                "echolm_example_removals_total", removed, self._maintenance.counts
            )
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

    def _grown(self, metric: str, before: Any, counts: Any) -> Any:
        """Count by how much each field of a dataclass has grown; gives the counts of now."""
        now = dataclasses.replace(counts)
        for field in dataclasses.fields(now):
            grown = getattr(now, field.name) - getattr(before, field.name)
            self._metrics.add(metric, grown, result=field.name)
        return now

    async def _maintain(self) -> None:
        """Keep the store within its limits, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.examples.maintenance_interval_s)
            try:
                await loop.run_in_executor(
                    None, self._maintenance.run, lambda: not self._stopping.is_set()
                )
            except Exception as error:  # the next round may work
                logger.warning("maintenance pauses: %s", error)

    async def _trim(self) -> None:
        """Remove old events from the learning log, again and again."""
        loop = asyncio.get_running_loop()
        self._metrics.add("echolm_learning_events_removed_total", 0)  # shown from the start on
        # Not at the start: what uses a snapshot saves it within 10 minutes, and shows that by it.
        await asyncio.sleep(_FIRST_TRIM_S)
        while True:
            try:
                removed = await loop.run_in_executor(None, self._retention.trim)
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
