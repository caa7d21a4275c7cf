"""The model ``example_manager``: turns exchanges into stored examples, off the path."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import EchoError, InvalidRequestError
from echolm.examples.admission import AdmissionPolicy, Verdict
from echolm.examples.writer import ExampleWriter, WriterCounts
from echolm.retrieval.milvus import LazyMilvusStore
from echolm.routing.service import Exchange
from echolm.settings import load_settings
from echolm.triton import codec
from echolm.triton.metrics import Metrics
from echolm.triton.runtime import Runtime

logger = logging.getLogger("echolm")

_ADMITTED, _REASON = contracts.EXAMPLE_MANAGER.outputs
_GAUGES_EVERY_S = 2.0


class TritonPythonModel:
    """Answers as soon as an exchange is judged and queued; writing comes later."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        embedding = EmbedderSpec.read(settings.embedding.model_dir)
        self._dimension = embedding.dimension
        self._policy = AdmissionPolicy(settings)
        self._store = LazyMilvusStore(settings.retrieval, embedding)
        self._writer = ExampleWriter(self._store, settings.examples)
        self._metrics = Metrics()
        self._runtime = Runtime(args["model_name"])
        self._runtime.spawn(self._metrics.run())
        self._runtime.spawn(self._gauges())

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            try:
                verdicts = [self._admit(exchange) for exchange in self._read(request)]
            except Exception as problem:
                responses.append(codec.error_response(problem))
                continue
            n = len(verdicts)
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        codec.tensor(_ADMITTED, [v.admitted for v in verdicts], (n, 1)),
                        codec.tensor(_REASON, [v.reason for v in verdicts], (n, 1)),
                    ]
                )
            )
        return responses

    def _admit(self, exchange: Exchange) -> Verdict:
        verdict = self._policy.judge(exchange)
        if verdict.admitted and self._writer.put(exchange) is None:
            verdict = Verdict(False, "queue_full")
        self._metrics.add("echolm_admissions_total", result=verdict.reason or "admitted")
        return verdict

    def _read(self, request: Any) -> list[Exchange]:
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
        exchanges = []
        for row in range(embeddings.shape[0]):
            cells = {name: array.reshape(-1)[row] for name, array in columns.items()}
            quality = float(cells.pop("quality"))
            texts = {name: codec.decode(value, name) for name, value in cells.items()}
            exchanges.append(
                Exchange(
                    embedding=np.array(embeddings[row], dtype=np.float32), quality=quality, **texts
                )
            )
        return exchanges

    async def _gauges(self) -> None:
        loop = asyncio.get_running_loop()
        shown = WriterCounts()
        while True:
            await asyncio.sleep(_GAUGES_EVERY_S)
            counts = replace(self._writer.counts)
            for result in ("written", "dropped", "failures"):
                grown = getattr(counts, result) - getattr(shown, result)
                self._metrics.add("echolm_example_writes_total", grown, result=result)
            shown = counts
            self._metrics.level("echolm_examples_pending", self._writer.pending)
            try:
                stored = await loop.run_in_executor(None, self._store.count)
                self._metrics.level("echolm_examples_stored", stored)
            except EchoError as error:
                logger.warning("example store: %s", error)

    def finalize(self) -> None:
        self._writer.close()
        self._runtime.close()
        self._store.close()
