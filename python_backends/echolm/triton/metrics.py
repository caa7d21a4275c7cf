"""EchoLM's metrics on Triton's metrics endpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from echolm import telemetry
from echolm.errors import InvalidRequestError
from echolm.internal_calls import ASKED, CallProofs
from echolm.judges.service import Reason
from echolm.primitives import Answer
from echolm.router.ports import Stage
from echolm.router.warm_up import GivenUp
from echolm.telemetry import SECONDS_BUCKETS, MetricSpec
from echolm.triton import codec
from echolm.triton.runtime import Runtime

METRICS_LOST = "metrics were lost"
_FLUSH_S = 0.5


def process_label(args: Mapping[str, str]) -> str:
    """Value of the label ``model`` in one process of a model: gauges of several must differ."""
    model, instance = args["model_name"], args["model_instance_name"]
    return model if instance == f"{model}_0_0" else instance


class _TritonExporter:
    """:class:`echolm.telemetry.Exporter` on Triton's endpoint."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}

    def open(self, spec: MetricSpec, labels: Mapping[str, str]) -> Any:
        # A family has to live as long as its metrics.
        if spec.name not in self._families:
            self._families[spec.name] = pb_utils.MetricFamily(
                name=spec.name,
                description=spec.meaning,
                kind=getattr(pb_utils.MetricFamily, spec.kind.upper()),
            )
        buckets = {"buckets": list(SECONDS_BUCKETS)} if spec.kind == "histogram" else {}
        return self._families[spec.name].Metric(labels=dict(labels), **buckets)


class Metrics(telemetry.Metrics):
    """Metrics of one model process, which a runtime flushes for as long as it lives."""

    def __init__(self, runtime: Runtime | None = None) -> None:
        super().__init__(_TritonExporter())
        if runtime is not None:
            runtime.repeat(self.flush, _FLUSH_S, METRICS_LOST)

    def count_rating(self, source: str, llm: str, score: float, predicted: float) -> None:
        """Count one rating of an answer, by source ``caller`` or ``judge``."""
        self.add("echolm_rated_answers_total", llm=llm, source=source)
        self.add("echolm_rated_quality_total", score, llm=llm, source=source)
        self.add("echolm_rated_predicted_quality_total", predicted, llm=llm, source=source)

    def check_proof(
        self,
        request: Any,
        proofs: CallProofs,
        purpose: str,
        names: Collection[str] | None = ASKED,
    ) -> None:
        """As :func:`echolm.triton.codec.check_proof`, and counts calls that are refused."""
        try:
            codec.check_proof(request, proofs, purpose, names)
        except InvalidRequestError:
            self.add("echolm_refused_calls_total", purpose=purpose)
            raise


_STAGES: Mapping[Stage, str] = {
    "selection": "echolm_selection_seconds",
    "decision": "echolm_decision_seconds",
    "generation": "echolm_generation_seconds",
    "first_token": "echolm_time_to_first_token_seconds",
}


class RouterMetrics(Metrics):
    """The router's metrics and its judge's.

    They are :class:`echolm.router.ports.RouterMetrics`,
    :class:`echolm.judges.service.JudgingMetrics` and :class:`echolm.judges.stored.ReuseMetrics`.
    """

    def __init__(self, runtime: Runtime, strongest_llm: str) -> None:
        super().__init__(runtime)
        self._strongest_llm = strongest_llm

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None:
        self.add("echolm_requests_total", llm=answer.llm, chosen=chosen)
        self.add("echolm_offloaded_total", float(answer.llm != self._strongest_llm))
        self.add("echolm_examples_total", len(answer.example_ids), llm=answer.llm)
        self.add("echolm_predicted_quality_total", answer.predicted_quality, llm=answer.llm)
        self.add("echolm_solicited_total", float(answer.solicit_feedback))
        self.observe("echolm_request_latency_seconds", seconds, llm=answer.llm)

    def took(self, stage: Stage, seconds: float, llm: str = "") -> None:
        labels = {"llm": llm} if llm else {}
        self.observe(_STAGES[stage], seconds, **labels)

    def reuse(self, action: str) -> None:
        self.add("echolm_stored_answers_total", action=action)

    def conversation(self, result: str) -> None:
        self.add("echolm_conversation_answers_total", result=result)

    def stored_compared(self, exact: bool, result: str) -> None:
        kind = "exact" if exact else "near"
        self.add("echolm_stored_comparisons_total", kind=kind, result=result)

    def degraded(self, part: str, reason: str) -> None:
        self.add("echolm_degraded_total", part=part, reason=reason)

    def failed(self, reason: str) -> None:
        self.add("echolm_failed_total", reason=reason)

    def warm_up_given_up(self, reason: GivenUp) -> None:
        self.add("echolm_warm_up_given_up_total", reason=reason)

    def judged(self, kind: str, reason: Reason, result: str, tokens: int, seconds: float) -> None:
        self.add("echolm_judgements_total", kind=kind, reason=reason, result=result)
        self.add("echolm_judge_tokens_total", tokens, kind=kind, reason=reason)
        self.add("echolm_judge_seconds_total", seconds, kind=kind, reason=reason)

    def both_orders(self, kind: str, consistent: bool) -> None:
        result = "consistent" if consistent else "inconsistent"
        self.add("echolm_judge_orders_total", kind=kind, result=result)

    def compared(self, llm: str, reason: Reason, share: float) -> None:
        self.add("echolm_judge_compared_total", llm=llm, reason=reason)
        self.add("echolm_judge_won_total", share, llm=llm, reason=reason)

    def rated(self, llm: str, score: float, predicted: float) -> None:
        self.count_rating("judge", llm, score, predicted)
