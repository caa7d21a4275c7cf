"""EchoLM's metrics on Triton's metrics endpoint.

Every update of a Triton metric is a call to the server process, so counts are gathered here
and handed over once in a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import Any

import triton_python_backend_utils as pb_utils

from echolm.routing.service import Answer

_FLUSH_S = 0.5

_COUNTERS = {
    "echolm_requests_total": "Answers by the LLM that gave them and the one the router chose",
    "echolm_examples_total": "Examples put into prompts, by LLM",
    "echolm_request_seconds_total": "Time from request to answer, by LLM, in seconds",
    "echolm_predicted_quality_total": "Sum of the router's quality estimates, by LLM",
    "echolm_degraded_total": "Answers that had to do without a part, by part",
    "echolm_failed_total": "Requests without an answer, by reason",
    "echolm_chosen_examples_total": "Examples that the retriever chose",
    "echolm_utility_total": "Sum of the chosen examples' utilities",
    "echolm_left_out_total": "Examples left out at random, to learn what they do",
    "echolm_retrieval_batches_total": "Batches searched",
    "echolm_retrieval_requests_total": "Requests searched for",
    "echolm_ratings_total": "Ratings by whether they were accepted",
    "echolm_admissions_total": "Exchanges offered as examples, by what became of them",
    "echolm_example_writes_total": "Admitted exchanges by what became of them, failed attempts",
    "echolm_example_removals_total": "Examples removed from the store, by reason",
    "echolm_replays_total": "Examples that were replayed off-peak, by what came of it",
    "echolm_replay_tokens_total": "LLM tokens that replay took, the judge's included",
    "echolm_replay_seconds_total": "Time that replays took, in seconds",
    "echolm_judgements_total": "Answers drawn to be judged, by judge and what became of it",
    "echolm_judge_tokens_total": "LLM tokens that judging took, second answers included",
    "echolm_judge_seconds_total": "Time that judgements took, in seconds",
    "echolm_learning_events_total": "Events of the learning log, by whether they could be applied",
}
_GAUGES = {
    "echolm_in_flight": "Requests in flight, by LLM and model",
    "echolm_examples_pending": "Examples that wait to be written",
    "echolm_examples_stored": "Examples in the store",
    "echolm_example_bytes": "Bytes of all stored requests and responses",
    "echolm_example_threshold": "Least utility of an example that goes into a prompt",
    "echolm_load": "Load of the LLM's pool over all routers; 1: as many as it serves at once",
    "echolm_load_bias": "What all routers' load takes off an LLM's score now; its lasting size is "
    "the signal to scale by",
    "echolm_load_board_degraded": "1 while a router cannot see the other routers' load",
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and gauges by name and labels; :meth:`flush` hands them to Triton."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._pending: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._levels: dict[tuple[str, Labels], float] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._pending[name, tuple(sorted(labels.items()))] += amount

    def level(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._levels[name, tuple(sorted(labels.items()))] = value

    def flush(self) -> None:
        """Hand everything to Triton."""
        with self._lock:
            pending, self._pending = self._pending, defaultdict(float)
            levels, self._levels = self._levels, {}
        for key, amount in pending.items():
            if amount > 0:
                self._metric(key).increment(amount)
        for key, value in levels.items():
            self._metric(key).set(value)

    async def run(self) -> None:
        """Flush for as long as the process lives."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_FLUSH_S)
            await loop.run_in_executor(None, self.flush)

    def _metric(self, key: tuple[str, Labels]) -> Any:
        if key not in self._metrics:
            name, labels = key
            if name not in self._families:
                counter = name in _COUNTERS
                self._families[name] = pb_utils.MetricFamily(
                    name=name,
                    description=_COUNTERS[name] if counter else _GAUGES[name],
                    kind=pb_utils.MetricFamily.COUNTER if counter else pb_utils.MetricFamily.GAUGE,
                )
            self._metrics[key] = self._families[name].Metric(labels=dict(labels))
        return self._metrics[key]


class TritonRouterMetrics:
    """:class:`echolm.routing.service.RouterMetrics` on Triton's endpoint."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None:
        add = self._metrics.add
        add("echolm_requests_total", llm=answer.llm, chosen=chosen)
        add("echolm_examples_total", len(answer.example_ids), llm=answer.llm)
        add("echolm_request_seconds_total", seconds, llm=answer.llm)
        add("echolm_predicted_quality_total", answer.predicted_quality, llm=answer.llm)

    def degraded(self, part: str) -> None:
        self._metrics.add("echolm_degraded_total", part=part)

    def failed(self, reason: str) -> None:
        self._metrics.add("echolm_failed_total", reason=reason)


class TritonJudgingMetrics:
    """:class:`echolm.judging.service.JudgingMetrics` on Triton's endpoint."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def judged(self, kind: str, result: str, tokens: int, seconds: float) -> None:
        add = self._metrics.add
        add("echolm_judgements_total", kind=kind, result=result)
        add("echolm_judge_tokens_total", tokens, kind=kind)
        add("echolm_judge_seconds_total", seconds, kind=kind)
