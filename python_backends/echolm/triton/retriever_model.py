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
from echolm.internal_calls import SELECTION
from echolm.learning.request_sample import RequestSample
from echolm.primitives import Candidate, Request, Retrieved
from echolm.retrieval.packed import pack
from echolm.retrieval.record import NONE
from echolm.retrieval.reuse import find_reusable
from echolm.retrieval.selector import Selection
from echolm.router.stored import answer_key_of
from echolm.router.validation import build_request, is_searched
from echolm.settings.loading import load_settings
from echolm.store.base import Query
from echolm.store.checks import check_vector
from echolm.triton import codec
from echolm.triton.batched import BatchedModel
from echolm.triton.learning import follow_log
from echolm.triton.metrics import Metrics, process_label
from echolm.triton.runtime import Runtime
from echolm.wiring.internal_calls import build_call_proofs
from echolm.wiring.learning import build_learner, open_event_log
from echolm.wiring.retrieval import (
    build_selector,
    example_token_counter,
    open_prefix_index,
    open_store,
    unseen_share,
)

logger = logging.getLogger("echolm")

_STATISTICS_EVERY_S = 5.0


@dataclass(frozen=True)
class _Row:
    """One request.

    Attributes:
        request: None if the router will refuse it.
        embedding: FP32 [D].
        searched: whether examples are.
        answer_key: says which stored answers are reusable; empty: none.
    """

    request: Request | None
    embedding: NDArray[np.float32]
    searched: bool
    answer_key: str = ""

    @property
    def text(self) -> str:
        return "" if self.request is None else self.request.transcript


class TritonPythonModel(BatchedModel[_Row, Retrieved]):
    """Chooses examples for all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        self._settings = settings = load_settings()
        self._store = open_store(settings, wait=True)
        self._prefix_index = open_prefix_index(settings)
        count_tokens, rng = example_token_counter(settings), np.random.default_rng()
        dimension, index = self._store.dimension, self._prefix_index
        self._unseen = unseen_share(settings)
        self._selector = build_selector(settings, count_tokens, rng, dimension, index, self._unseen)
        self._runtime = Runtime(args["model_name"])
        self._metrics = Metrics(self._runtime)
        self._proofs = build_call_proofs(settings)
        log, owner = open_event_log(settings), f"{socket.gethostname()}:{os.getpid()}"
        self._sample = RequestSample(log, self._selector.newest_statistics, owner)
        learner = build_learner(settings, log, self._selector.learnables)
        follow_log(learner, self._runtime, self._metrics, process_label(args))
        failure = "statistics of requests pause"
        self._runtime.repeat(self._sample.log_if_due, _STATISTICS_EVERY_S, failure)

    def read(self, request: Any) -> list[_Row]:
        self._metrics.check_proof(request, self._proofs, SELECTION)
        rows = codec.read_each(request, contracts.RETRIEVER.inputs)
        return [self._row(row) for row in rows]

    def _row(self, row: dict[str, Any] | InvalidRequestError) -> _Row:
        nothing = np.zeros(self._store.dimension, dtype=np.float32)
        if isinstance(row, InvalidRequestError):
            return _Row(None, nothing, False)
        embedding = row.pop("embedding")
        try:
            request = build_request(self._settings, text=row.pop("text_input", None), **row)
            check_vector(embedding, self._store.dimension)
        except InvalidRequestError:
            # The router says so: it is not this row's caller alone that waits for the batch.
            return _Row(None, nothing, False)
        possible = self._settings.retrieval.max_examples > 0
        wanted, key = is_searched(self._settings, request), answer_key_of(self._settings, request)
        return _Row(request, embedding, wanted and (possible or bool(key)), key)

    def run(self, rows: Sequence[_Row]) -> list[Retrieved]:
        found: list[list[Candidate]] = [[] for _ in rows]
        searched = [(i, r.request) for i, r in enumerate(rows) if r.request and r.searched]
        degraded = ""
        if searched:
            self._metrics.add("echolm_retrieval_batches_total")
            self._metrics.add("echolm_retrieval_requests_total", len(searched))
            started = time.perf_counter()
            try:
                results = self._store.search(
                    np.stack([rows[i].embedding for i, _ in searched]),
                    [Query.of(request.tenant, request.system_prompt) for _, request in searched],
                    self._settings.retrieval.top_n,
                    now_ms(),
                )
                for (i, _), result in zip(searched, results, strict=True):
                    found[i] = result
            # What Milvus refuses is the fault of its settings: embeddings were checked before.
            except (UnavailableError, InvalidRequestError) as error:
                logger.warning("no examples: %s", error)
                degraded = "example store unavailable"
            except Exception as error:  # a defect costs the examples and no answer
                logger.error("no examples", exc_info=error)
                degraded = "retrieval failed"
            self._metrics.observe("echolm_search_seconds", time.perf_counter() - started)
        if not degraded:
            self._sample_of(rows, found)
        try:
            selections = self._selector.select([row.text for row in rows], found)
        except Exception as error:
            logger.error("no examples", exc_info=error)
            selections, degraded = [Selection() for _ in rows], "retrieval failed"
        self._count(selections)
        return [
            self._retrieved(row, candidates, selection, degraded)
            for row, candidates, selection in zip(rows, found, selections, strict=True)
        ]

    def _retrieved(
        self, row: _Row, found: Sequence[Candidate], selection: Selection, degraded: str
    ) -> Retrieved:
        """What the router is told of one request."""
        return Retrieved(
            None,
            selection.examples,
            selection.help_probability,
            "" if selection.record is None else selection.record.dump(),
            degraded if row.searched else "",
            find_reusable(row.text, row.answer_key, found, self._unseen),
        )

    def _sample_of(self, rows: Sequence[_Row], found: Sequence[Sequence[Candidate]]) -> None:
        """Let the statistics count those requests that may be learnt from."""
        counted = [k for k, row in enumerate(rows) if row.request and row.request.store]
        nearest = [found[k][0].similarity if found[k] else math.nan for k in counted]
        lengths = [len(rows[k].text) for k in counted]
        self._sample.add([rows[k].embedding for k in counted], nearest, lengths)

    def tensors(self, results: Sequence[Retrieved]) -> list[Any]:
        packed = [pack(result) for result in results]
        return [codec.tensor(contracts.RETRIEVED, packed, (len(packed), 1))]

    def _count(self, selections: list[Selection]) -> None:
        add = self._metrics.add
        utilities = [e.utility for s in selections for e in s.examples]
        add("echolm_chosen_examples_total", len(utilities))
        add("echolm_utility_total", sum(utilities))
        dropped = sum(s.record is not None and s.record.dropped != NONE for s in selections)
        add("echolm_dropped_examples_total", dropped)

    def finalize(self) -> None:
        self._runtime.close()
        self._store.close()
        self._prefix_index.close()
