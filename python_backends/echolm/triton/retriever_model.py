"""The model ``retriever``: one Milvus search and one scoring per batch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.clock import now_ms
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.learning.learner import Learner
from echolm.llm.tokens import token_counter
from echolm.primitives import DEFAULT_TENANT, Candidate
from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.record import NONE
from echolm.retrieval.selector import Selection
from echolm.router.validation import check_cache_control, check_tenant
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm.store.base import Query
from echolm.store.milvus import MilvusStore
from echolm.triton import codec
from echolm.triton.learning import keep_learning, learn_at_start
from echolm.triton.metrics import Metrics, process_label
from echolm.triton.runtime import Runtime
from echolm.wiring import build_selector, open_event_log

logger = logging.getLogger("echolm")

_SPECS = {t.name: t for t in contracts.RETRIEVED}


@dataclass(frozen=True)
class _Rows:
    """The rows of one Triton request."""

    texts: list[str]
    embeddings: NDArray[np.float32]
    queries: list[Query]
    wanted: list[bool]


class TritonPythonModel:
    """Chooses examples for all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        self._settings = settings = load_settings()
        self._embedding = EmbedderSpec.read(settings.embedding.model_dir)
        self._store = MilvusStore(
            settings.retrieval, self._embedding.name, self._embedding.dimension, wait=True
        )
        reader = min(
            (llm for llm in settings.llms if llm.takes_examples),
            key=lambda llm: llm.context_length,
            default=settings.default_llm,
        )
        self._board = SharedPrefixIndex(settings.prefix_index_path)
        self._selector = build_selector(
            settings, token_counter(reader.tokenizer), np.random.default_rng(), self._board
        )
        self._metrics = Metrics()
        self._runtime = Runtime(args["model_name"])
        self._runtime.spawn(self._metrics.run())
        if learnables := self._selector.learnables:
            learner = Learner(
                open_event_log(settings), learnables, settings.learning.snapshot_every
            )
            learn_at_start(learner)
            self._runtime.spawn(keep_learning(learner, self._metrics, process_label(args)))

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        rows: dict[int, _Rows] = {}
        for i, request in enumerate(requests):
            try:
                rows[i] = _read(request, self._settings, self._embedding.dimension)
            except Exception as problem:
                responses[i] = codec.error_response(problem)
        chosen, degraded = self._choose(list(rows.values()))
        for i, own in rows.items():
            own_chosen, chosen = chosen[: len(own.texts)], chosen[len(own.texts) :]
            responses[i] = pb_utils.InferenceResponse(_outputs(own_chosen, degraded))
        return responses

    def _choose(self, rows: list[_Rows]) -> tuple[list[Selection], str]:
        """Selections of all rows in order, and why there are none if the store failed."""
        texts = [text for own in rows for text in own.texts]
        wanted = [flag for own in rows for flag in own.wanted]
        queries = [query for own in rows for query in own.queries]
        found: list[list[Candidate]] = [[] for _ in texts]
        asked = [i for i, flag in enumerate(wanted) if flag]
        degraded = ""
        if asked:
            embeddings = np.concatenate([own.embeddings for own in rows])[asked]
            self._metrics.add("echolm_retrieval_batches_total")
            self._metrics.add("echolm_retrieval_requests_total", len(asked))
            started = time.perf_counter()
            try:
                results = self._store.search(
                    embeddings,
                    [queries[i] for i in asked],
                    self._settings.retrieval.top_n,
                    now_ms(),
                )
                for i, result in zip(asked, results, strict=True):
                    found[i] = result
            except UnavailableError as error:
                logger.warning("no examples: %s", error)
                degraded = "example store unavailable"
            self._metrics.observe("echolm_search_seconds", time.perf_counter() - started)
        selections = self._selector.select(texts, found)
        self._count(selections)
        return selections, degraded

    def _count(self, selections: list[Selection]) -> None:
        add = self._metrics.add
        utilities = [e.utility for s in selections for e in s.examples]
        add("echolm_chosen_examples_total", len(utilities))
        add("echolm_utility_total", sum(utilities))
        add(
            "echolm_dropped_examples_total",
            sum(s.record is not None and s.record.dropped != NONE for s in selections),
        )
        self._metrics.level("echolm_utility_threshold", self._selector.least_utility)

    def finalize(self) -> None:
        self._runtime.close()
        self._store.close()
        self._board.close()


def _read(request: Any, settings: Settings, dimension: int) -> _Rows:
    raw_texts, embeddings = codec.read(request, "text_input"), codec.read(request, "embedding")
    if raw_texts is None or embeddings is None or embeddings.shape[-1] != dimension:
        raise InvalidRequestError.of(
            "embedding",
            f"shape [n, {dimension}], as configured",
            "none" if embeddings is None else f"shape {list(embeddings.shape)}",
        )
    texts = [codec.decode(text, "text_input") for text in raw_texts.reshape(-1)]

    def column(name: str, default: str) -> list[str]:
        array = codec.read(request, name)
        if array is None:
            return [default] * len(texts)
        return [codec.decode(value, name) for value in array.reshape(-1)]

    tenants = [check_tenant(name) for name in column("tenant", DEFAULT_TENANT)]
    systems = column("system_prompt", "")
    controls = column("cache_control", "default")
    return _Rows(
        texts=texts,
        # The array is a view of Triton's memory, which goes with the request.
        embeddings=np.array(embeddings, dtype=np.float32),
        queries=[Query.of(t, s) for t, s in zip(tenants, systems, strict=True)],
        wanted=[
            check_cache_control(control)[0] and settings.retrieval.max_examples > 0
            for control in controls
        ],
    )


def _outputs(chosen: list[Selection], degraded: str) -> list[Any]:
    """One row per request; rows with fewer examples than the longest are padded."""
    n = len(chosen)
    width = max(len(selection.examples) for selection in chosen)

    def column(name: str, field: str, fill: Any) -> Any:
        values = [
            getattr(s.examples[k], field) if k < len(s.examples) else fill
            for s in chosen
            for k in range(width)
        ]
        return codec.tensor(_SPECS[name], values, (n, width))

    return [
        column("example_ids", "id", contracts.PAD_ID),
        column("example_requests", "request", ""),
        column("example_responses", "response", ""),
        column("example_similarities", "similarity", 0.0),
        column("example_utilities", "utility", 0.0),
        codec.tensor(_SPECS["help_probability"], [s.help_probability for s in chosen], (n, 1)),
        codec.tensor(
            _SPECS["selection_record"],
            ["" if s.record is None else s.record.dump() for s in chosen],
            (n, 1),
        ),
        codec.tensor(_SPECS["retrieval_degraded"], [degraded] * n, (n, 1)),
    ]
