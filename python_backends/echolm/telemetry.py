"""Every metric that EchoLM exports, and how updates of them are gathered.

Nothing here knows Triton; :mod:`echolm.triton.metrics` puts the metrics on its endpoint.
``docker/METRICS.md`` shows :data:`METRICS` to people, and a test compares the two.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
"""Upper bounds of all histograms' buckets, in seconds: from a decision to a whole answer."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric; all of its labels are always set."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        suffixes = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return tuple(f"{self.name}{suffix}" for suffix in suffixes)


def _counter(name: str, meaning: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"echolm_{name}_total", "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"echolm_{name}", "gauge", meaning, labels)


def _seconds(name: str, meaning: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"echolm_{name}_seconds", "histogram", meaning, labels)


METRICS: Mapping[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        # Router
        _counter("requests", "Answers, by LLM that gave them and LLM chosen", "llm", "chosen"),
        _counter("offloaded", "Answers by another LLM than the strongest"),
        _counter("examples", "Examples in the prompts of answered requests", "llm"),
        _counter("predicted_quality", "Sum of the router's quality estimates of answers", "llm"),
        _counter("solicited", "Answers for which a rating is asked"),
        _counter(
            "stored_answers",
            "Requests for which a stored answer was found, by what became of it: give, check or "
            "leave",
            "action",
        ),
        _counter(
            "stored_comparisons",
            "Stored answers compared with fresh ones of the strongest LLM: same, right, wrong or "
            "unjudged",
            "kind",
            "result",
        ),
        _counter(
            "conversation_answers",
            "Answers in conversations whose earlier answers the router knows: stayed with the LLM "
            "that gave them, or moved to another",
            "result",
        ),
        _counter("degraded", "Answers that had to do without a part", "part", "reason"),
        _counter("failed", "Requests without an answer", "reason"),
        _counter(
            "refused_calls",
            "Calls of models behind the router that EchoLM itself has not made, by what was called",
            "purpose",
        ),
        _seconds("request_latency", "From request to whole answer", "llm"),
        _seconds(
            "time_to_first_token", "From request to the first piece of a streamed answer", "llm"
        ),
        _seconds("selection", "From request to the call of an LLM, queueing included"),
        _seconds("decision", "The router's draw of an LLM, for all requests of a batch together"),
        _seconds("generation", "The front door's wait for an LLM's whole answer", "llm"),
        _gauge("in_flight", "Requests in flight from one router to an LLM", "llm", "model"),
        _gauge(
            "load",
            "Load of the LLM's pool over all routers of the machine; 1: as many requests as it "
            "serves at once",
            "llm",
            "model",
        ),
        _gauge(
            "load_bias",
            "Score that the load takes off an LLM now; its lasting size is the signal to scale by",
            "llm",
            "model",
        ),
        _gauge("load_table_degraded", "1 while a router cannot see the others' load", "model"),
        # Retriever
        _counter("chosen_examples", "Examples that the retriever chose"),
        _counter("utility", "Sum of the chosen examples' utilities"),
        _counter("dropped_examples", "Examples dropped at random, to learn what they do"),
        _counter("retrieval_batches", "Batches searched"),
        _counter("retrieval_requests", "Requests searched for"),
        _seconds("search", "The search in Milvus for one batch"),
        # Ratings
        _counter("ratings", "Ratings and preferences that callers sent", "result"),
        _counter("rated_answers", "Answers that were rated", "llm", "source"),
        _counter("rated_quality", "Sum of these ratings", "llm", "source"),
        _counter(
            "rated_predicted_quality",
            "Sum of what the router had expected of the rated answers",
            "llm",
            "source",
        ),
        _counter("judgements", "Answers drawn to be judged", "kind", "reason", "result"),
        _counter(
            "judge_tokens",
            "LLM tokens that judging took, second answers included",
            "kind",
            "reason",
        ),
        _counter("judge_seconds", "Seconds that judgements took", "kind", "reason"),
        _counter(
            "judge_orders",
            "Comparisons that the judge made in both orders, by whether it said the same",
            "kind",
            "result",
        ),
        _counter(
            "judge_agreement",
            "Pairs of answers that callers rate differently, by the order that the judge gives",
            "result",
        ),
        _counter(
            "judge_compared", "Answers that were compared with another LLM's", "llm", "reason"
        ),
        _counter("judge_won", "Sum of what these answers won; a tie is 0.5", "llm", "reason"),
        _gauge(
            "evidence",
            "Ratings and comparisons of an LLM's answers that the router has learnt",
            "llm",
            "examples",
            "model",
        ),
        _gauge(
            "warm_up",
            "1 while an LLM gets no requests of a kind, since it has hardly been tried there",
            "llm",
            "examples",
            "model",
        ),
        _counter("warm_up_given_up", "LLMs tried without a warm-up, by kind of request", "reason"),
        # Learning log
        _counter("learning_events", "Events of the log that a model read", "result", "model"),
        _counter("learning_events_removed", "Old events that were removed from the log"),
        _gauge("learning_log_up", "Whether a model's last reading of the log worked", "model"),
        # Example manager
        _counter("admissions", "Interactions submitted as examples", "result"),
        _counter("example_writes", "Admitted interactions, and attempts that failed", "result"),
        _counter("example_removals", "Examples removed from the store", "result"),
        _gauge("examples_pending", "Examples in the write-ahead log that wait to be written"),
        _gauge("examples_pending_limit", "Examples that the write-ahead log takes at most"),
        _gauge("examples_stored", "Examples in the store"),
        _gauge("example_bytes", "Bytes of all stored requests and responses"),
        _gauge("example_store_up", "Whether the last look into Milvus worked"),
        _counter("replays", "Examples that were replayed off-peak", "result"),
        _counter("replay_tokens", "LLM tokens that replay took, the judge's included"),
        _counter("replay_seconds", "Seconds that replays took"),
        # LLMs
        _gauge("llm_ready", "Whether the engine, or the server elsewhere, takes requests", "model"),
        _gauge("llm_in_flight", "Requests that the LLM is working on", "model"),
        _counter("llm_prompt_tokens", "Tokens of prompts taken", "model"),
        _counter("llm_generated_tokens", "Tokens generated", "model"),
        _counter(
            "llm_prefix_hit_tokens",
            "Tokens of prompts found in the prefix cache (openvino: estimated)",
            "model",
        ),
        _counter("llm_cancelled", "Requests cancelled before their end", "model"),
        _counter("llm_failed", "Requests that ended in an error of the engine", "model"),
        _counter("llm_restarts", "Times that the engine had to start anew", "model"),
        # `echolm serve`
        _gauge("process_up", "Whether a process of the server runs and can be used", "process"),
        _counter("process_restarts", "Times that a process was started again", "process"),
        _gauge("model_up", "Whether a model has all of its processes", "model"),
        _counter(
            "model_restarts", "Times that a model was loaded anew for a process that died", "model"
        ),
    )
}


class Exported(Protocol):
    """One metric with its labels, as Triton's ``Metric``."""

    def increment(self, value: float) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


class Exporter(Protocol):
    """Where metrics are shown."""

    def open(self, spec: MetricSpec, labels: Mapping[str, str]) -> Exported: ...


_Key = tuple[Kind, str, tuple[tuple[str, str], ...]]
"""Kind, name and labels."""


class Metrics:
    """Gathers updates of :data:`METRICS` until :meth:`flush` exports them. For several threads.

    Each update that Triton gets is a call to the server process (9 µs on a 2-core
    machine), so counts are added up here, and Triton is not called while a request waits.
    """

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._opened: dict[_Key, Exported] = {}
        self._gathered: defaultdict[_Key, list[float]] = defaultdict(list)
        self._totals: defaultdict[_Key, float] = defaultdict(float)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        self._gather(_key("counter", name, labels), amount)

    def total(self, name: str, value: float, **labels: str) -> None:
        """Bring a counter to a total that is counted elsewhere.

        A total that falls, since what counts it has started anew, adds nothing until it is
        above its highest value again: a counter cannot go back.
        """
        key = _key("counter", name, labels)
        with self._lock:
            added = max(0.0, value - self._totals[key])
            self._totals[key] += added
        self._gather(key, added)

    def level(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gather(_key("gauge", name, labels), value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value, in seconds, into a histogram."""
        self._gather(_key("histogram", name, labels), value)

    def _gather(self, key: _Key, value: float) -> None:
        with self._lock:
            self._gathered[key].append(value)

    def flush(self) -> None:
        """Export everything that has been gathered.

        Raises:
            ValueError: there is no such metric, or its kind or labels are others.
        """
        with self._flushing:
            with self._lock:
                gathered, self._gathered = self._gathered, defaultdict(list)
            # Gauges last: who reads that nothing is in flight finds all of it counted.
            for key, values in sorted(gathered.items(), key=lambda item: item[0][0] == "gauge"):
                metric = self._open(key)  # counters from 0 on, or Prometheus misses the first step
                if key[0] == "gauge":
                    metric.set(values[-1])
                elif key[0] == "counter":
                    if amount := sum(values):
                        metric.increment(amount)
                else:
                    for value in values:
                        metric.observe(value)

    def _open(self, key: _Key) -> Exported:
        if key not in self._opened:
            kind, name, labels = key
            spec = METRICS.get(name)
            names = tuple(label for label, _ in labels)
            if spec is None or spec.kind != kind or tuple(sorted(spec.labels)) != names:
                raise ValueError(f"metric {name}: expected {spec}, got a {kind} with {names}")
            self._opened[key] = self._exporter.open(spec, dict(labels))
        return self._opened[key]


def _key(kind: Kind, name: str, labels: Mapping[str, str]) -> _Key:
    return kind, name, tuple(sorted(labels.items()))
