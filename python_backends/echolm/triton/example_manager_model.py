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
from echolm.errors import EchoError
from echolm.examples.admission import AdmissionPolicy, AdmissionResult
from echolm.examples.replay import Replayed
from echolm.judges.agreement import JudgeAgreement
from echolm.learning.request_sample import NewestStatistics
from echolm.primitives import Interaction
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.batched import BatchedModel
from echolm.triton.bls import BLSTextEmbedder
from echolm.triton.metrics import Metrics
from echolm.triton.runtime import Runtime
from echolm.wiring.examples import (
    build_maintenance,
    build_off_peak_replay,
    build_replayer,
    build_retention,
    build_writer,
    open_statistics,
    open_write_ahead_log,
)
from echolm.wiring.internal_calls import build_call_proofs
from echolm.wiring.learning import build_learner, open_event_log
from echolm.wiring.retrieval import open_store
from echolm.wiring.routing import open_load_table

logger = logging.getLogger("echolm")

_SHOW_EVERY_S = 2.0
_NICENESS = 10  # of this process: nobody waits for it, and requests need the cores
_FIRST_TRIM_S, _TRIM_EVERY_S = 900.0, 3_600.0


class TritonPythonModel(BatchedModel[Interaction, AdmissionResult]):
    """Answers as soon as interactions are judged and logged; writing comes later."""

    def initialize(self, args: dict[str, str]) -> None:
        os.nice(_NICENESS)
        self._settings = settings = load_settings()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        self._policy = AdmissionPolicy(settings)
        self._store = open_store(settings, wait=True)
        self._log = open_event_log(settings)
        self._write_ahead_log = open_write_ahead_log(settings)
        self._writer = build_writer(settings, self._store, self._write_ahead_log, self._log)
        self._statistics = open_statistics(settings)
        parts = (self._store, self._statistics, self._log)
        newest = NewestStatistics(self._store.dimension)
        # Here, since of this model there is one process.
        self._agreement = JudgeAgreement()
        self._learner = build_learner(settings, self._log, [newest, self._agreement])
        self._maintenance = build_maintenance(settings, *parts, owner, newest)
        self._retention = build_retention(settings, self._statistics, self._log, owner)
        self._stopping = threading.Event()
        self._load = open_load_table(settings) if settings.replay.off_peak else None
        self._embedder = BLSTextEmbedder(settings.retrieval.timeout_s)
        self._runtime = runtime = Runtime(args["model_name"])
        self._metrics = Metrics(runtime)
        self._proofs = build_call_proofs(settings)
        self._metrics.add("echolm_learning_events_removed_total", 0)  # shown from the start on
        interval_s = settings.examples.maintenance_interval_s
        runtime.repeat(self._show, _SHOW_EVERY_S, "example store")
        runtime.repeat(self._maintain, interval_s, "maintenance of the examples pauses")
        # Not at the start: what uses a snapshot saves it within 10 minutes, and shows that by it.
        runtime.repeat(self._trim, _TRIM_EVERY_S, "the learning log is not trimmed", _FIRST_TRIM_S)
        if self._load is not None:
            replayer = build_replayer(settings, *parts, self._embedder)
            replay = build_off_peak_replay(
                settings, replayer, self._log, self._load, owner, self._count_replay
            )
            runtime.spawn(replay.run())

    def _count_replay(self, replayed: Replayed) -> None:
        result = "improved" if replayed.improved else replayed.reason.replace(" ", "_")
        self._metrics.add("echolm_replays_total", result=result)
        self._metrics.add("echolm_replay_tokens_total", replayed.tokens)
        self._metrics.add("echolm_replay_seconds_total", replayed.seconds)

    def read(self, request: Any) -> list[Interaction]:
        self._metrics.check_proof(request, self._proofs, contracts.EXAMPLE_MANAGER.name, None)
        inputs = contracts.EXAMPLE_MANAGER.inputs
        rows = codec.read_embedded(request, inputs, self._store.dimension)
        return [Interaction(**row) for row in rows]

    def run(self, rows: Sequence[Interaction]) -> list[AdmissionResult]:
        """Judge interactions, and keep those that are admitted for good.

        Together, since the write-ahead log waits for the disk once each time.
        """
        results = [self._embedded(self._policy.judge(one), one) for one in rows]
        admitted = [r.interaction for r in results if r.interaction is not None]
        ids = iter(self._writer.put(admitted) if admitted else [])
        results = [
            AdmissionResult(None, "queue_full") if r.admitted and next(ids) is None else r
            for r in results
        ]
        for result in results:
            self._metrics.add("echolm_admissions_total", result=result.reason or "admitted")
        return results

    def tensors(self, results: Sequence[AdmissionResult]) -> list[Any]:
        columns = {
            "admitted": [result.admitted for result in results],
            "reason": [result.reason for result in results],
        }
        return codec.tensors(contracts.EXAMPLE_MANAGER.outputs, len(results), columns)

    def _embedded(self, result: AdmissionResult, submitted: Interaction) -> AdmissionResult:
        """The result, with an embedding of what is stored: that of the text before redaction may
        give away what was redacted."""
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

    def _show(self) -> None:
        """Bring the metrics up to date."""
        for name, counts in (
            ("echolm_example_writes_total", self._writer.counts),
            ("echolm_example_removals_total", self._maintenance.counts),
        ):
            for result, number in dataclasses.asdict(counts).items():
                self._metrics.total(name, number, result=result)
        for result, number in self._agreement.counts.items():
            self._metrics.total("echolm_judge_agreement_total", number, result=result)
        level = self._metrics.level
        level("echolm_examples_pending", self._writer.pending)
        level("echolm_examples_pending_limit", self._settings.examples.max_pending)
        up = False
        try:
            level("echolm_examples_stored", self._store.count())
            level("echolm_example_bytes", self._statistics.totals()[1])
            up = True
        finally:
            level("echolm_example_store_up", float(up))

    def _maintain(self) -> None:
        self._learner.catch_up()
        self._maintenance.run(lambda: not self._stopping.is_set())

    def _trim(self) -> None:
        removed = self._retention.trim()
        self._metrics.add("echolm_learning_events_removed_total", removed)

    def finalize(self) -> None:
        self._stopping.set()
        self._writer.close()
        self._runtime.close()
        for part in (self._write_ahead_log, self._statistics, self._log, self._store, self._load):
            if part is not None:
                part.close()
