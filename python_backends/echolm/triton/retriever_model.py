"""The model ``retriever``: one Milvus search and one scoring per batch."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm import contracts
from echolm.clock import now_ms
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.learning.request_sample import RequestSample
from echolm.primitives import DEFAULT_TENANT, Candidate, Reusable
from echolm.retrieval.record import NONE
from echolm.retrieval.reuse import REUSE_FEATURES, find_reusable
from echolm.retrieval.selector import Selection
from echolm.settings.loading import load_settings
from echolm.store.base import Query
from echolm.triton import codec
from echolm.triton.batched import BatchedModel
from echolm.triton.learning import follow_log
from echolm.triton.metrics import Metrics, process_label
from echolm.triton.rows import padded
from echolm.triton.runtime import Runtime
from echolm.wiring.learning import build_learner, open_event_log
from echolm.wiring.retrieval import (
    build_selector,
    example_token_counter,
    open_prefix_index,
    open_store,
)

logger = logging.getLogger("echolm")

_STATISTICS_EVERY_S = 5.0


@dataclass(frozen=True)
class _Row:
    """One request.

    Attributes:
        embedding: FP32 [D].
        answer_key: says which stored answers are reusable.
        learn: whether statistics may count it.
    """

    text: str
    embedding: NDArray[np.float32]
    query: Query
    search: bool
    answer_key: str
    learn: bool


@dataclass(frozen=True)
class _Result:
    """What is chosen for one request, and why nothing is if the store failed."""

    selection: Selection
    degraded: str
    reusable: Reusable | None


class TritonPythonModel(BatchedModel[_Row, _Result]):
    """Chooses examples for all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        self._settings = settings = load_settings()
        self._store = open_store(settings, wait=True)
        self._prefix_index = open_prefix_index(settings)
        count_tokens, rng = example_token_counter(settings), np.random.default_rng()
        dimension, index = self._store.dimension, self._prefix_index
        self._selector = build_selector(settings, count_tokens, rng, dimension, index)
        self._runtime = Runtime(args["model_name"])
        self._metrics = Metrics(self._runtime)
        log, owner = open_event_log(settings), f"{socket.gethostname()}:{os.getpid()}"
        self._sample = RequestSample(log, self._selector.newest_statistics, owner)
        learner = build_learner(settings, log, self._selector.learnables)
        follow_log(learner, self._runtime, self._metrics, process_label(args))
        failure = "statistics of requests pause"
        self._runtime.repeat(self._sample.log_if_due, _STATISTICS_EVERY_S, failure)

    def read(self, request: Any) -> list[_Row]:
        inputs = contracts.RETRIEVER.inputs
        rows = codec.read_embedded(request, inputs, self._store.dimension)
        possible = self._settings.retrieval.max_examples > 0
        return [
            _Row(
                row["text_input"],
                row["embedding"],
                Query.of(row.get("tenant", DEFAULT_TENANT), row.get("system_prompt", "")),
                row.get("search", True) and (possible or bool(row.get("answer_key"))),
                row.get("answer_key", ""),
                row.get("learn", True) and bool(row["text_input"].strip()),
            )
            for row in rows
        ]

    def run(self, rows: Sequence[_Row]) -> list[_Result]:
        found: list[list[Candidate]] = [[] for _ in rows]
        searched = [i for i, row in enumerate(rows) if row.search]
        degraded = ""
        if searched:
            self._metrics.add("echolm_retrieval_batches_total")
            self._metrics.add("echolm_retrieval_requests_total", len(searched))
            started = time.perf_counter()
            try:
                results = self._store.search(
                    np.stack([rows[i].embedding for i in searched]),
                    [rows[i].query for i in searched],
                    self._settings.retrieval.top_n,
                    now_ms(),
                )
                for i, result in zip(searched, results, strict=True):
                    found[i] = result
            # What Milvus refuses is the fault of its settings: embeddings were checked before.
            except (UnavailableError, InvalidRequestError) as error:
                logger.warning("no examples: %s", error)
                degraded = "example store unavailable"
            self._metrics.observe("echolm_search_seconds", time.perf_counter() - started)
        if not degraded:
            self._sample_of(rows, found)
        selections = self._selector.select([row.text for row in rows], found)
        self._count(selections)
        reusable = [
            find_reusable(row.text, row.answer_key, candidates)
            for row, candidates in zip(rows, found, strict=True)
        ]
        return [_Result(s, degraded, r) for s, r in zip(selections, reusable, strict=True)]

    def _sample_of(self, rows: Sequence[_Row], found: Sequence[Sequence[Candidate]]) -> None:
        """Let the statistics count those requests that may be learnt from."""
        counted = [k for k, row in enumerate(rows) if row.learn]
        nearest = [found[k][0].similarity if found[k] else math.nan for k in counted]
        lengths = [len(rows[k].text) for k in counted]
        self._sample.add([rows[k].embedding for k in counted], nearest, lengths)

    def tensors(self, results: Sequence[_Result]) -> list[Any]:
        """One row per request; rows with fewer examples than the longest are padded."""
        chosen = [result.selection for result in results]
        records = [selection.record for selection in chosen]
        reusable = [result.reusable for result in results]
        none = np.zeros(len(REUSE_FEATURES), dtype=np.float32)

        def of_examples(field: str, fill: Any) -> list[Any]:
            return padded([[getattr(e, field) for e in s.examples] for s in chosen], fill)

        columns = {
            "example_ids": of_examples("id", contracts.PAD_ID),
            "example_requests": of_examples("request", ""),
            "example_responses": of_examples("response", ""),
            "example_similarities": of_examples("similarity", 0.0),
            "example_utilities": of_examples("utility", 0.0),
            "example_agreements": of_examples("agreement", 0.0),
            "help_probability": [selection.help_probability for selection in chosen],
            "selection_record": ["" if r is None else r.dump() for r in records],
            "retrieval_degraded": [result.degraded for result in results],
            "reusable_id": [contracts.PAD_ID if r is None else r.id for r in reusable],
            "reusable_response": ["" if r is None else r.response for r in reusable],
            "reusable_exact": [r is not None and r.exact for r in reusable],
            "reusable_features": [none if r is None else r.features for r in reusable],
        }
        return codec.tensors(contracts.RETRIEVED, len(results), columns)

    def _count(self, selections: list[Selection]) -> None:
        add = self._metrics.add
        utilities = [e.utility for s in selections for e in s.examples]
        add("echolm_chosen_examples_total", len(utilities))
        add("echolm_utility_total", sum(utilities))
        dropped = sum(s.record is not None and s.record.dropped != NONE for s in selections)
        add("echolm_dropped_examples_total", dropped)
        self._metrics.level("echolm_utility_threshold", self._selector.least_utility)

    def finalize(self) -> None:
        self._runtime.close()
        self._store.close()
        self._prefix_index.close()
