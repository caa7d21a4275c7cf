"""The model ``feedback``: takes ratings and preferences into the learning log."""

from __future__ import annotations

import math
from typing import Any

import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.errors import InvalidRequestError
from echolm.learning.event_log import SQLiteEventLog
from echolm.learning.learner import PREFERENCE, RATING, describe
from echolm.learning.tokens import FeedbackTokens
from echolm.settings import load_settings
from echolm.triton import codec
from echolm.triton.metrics import Metrics

_ACCEPTED = contracts.FEEDBACK.outputs[0]


class TritonPythonModel:
    """A rating is acknowledged once it is in the log for good."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._tokens = FeedbackTokens(
            settings.feedback.signing_key.get_secret_value(), settings.feedback.token_ttl_s
        )
        self._log = SQLiteEventLog(settings.event_log_path)
        self._metrics = Metrics()

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            try:
                rows = self._accept(request)
                self._metrics.add("echolm_ratings_total", rows, result="accepted")
                responses.append(
                    pb_utils.InferenceResponse([codec.tensor(_ACCEPTED, [True] * rows, (rows, 1))])
                )
            except Exception as problem:
                self._metrics.add("echolm_ratings_total", result="refused")
                responses.append(codec.error_response(problem))
        self._metrics.flush()
        return responses

    def _accept(self, request: Any) -> int:
        """Validate all rows, then log them; returns how many there were."""
        tokens = codec.read(request, "feedback_token")
        scores = codec.read(request, "score")
        others = codec.read(request, "preferred_over")
        if tokens is None or (scores is None) == (others is None):
            raise InvalidRequestError(
                "feedback: expected feedback_token with either score or preferred_over, got "
                f"{'both' if scores is not None and others is not None else 'neither'}"
            )
        events = []
        for row, raw in enumerate(tokens.reshape(-1)):
            decision = self._tokens.load(codec.decode(raw, "feedback_token"))
            if scores is not None:
                score = float(scores.reshape(-1)[row])
                if not (math.isfinite(score) and 0.0 <= score <= 1.0):
                    raise InvalidRequestError.of("score", "a number in [0, 1]", score)
                events.append((RATING, {**describe(decision), "score": score}))
            elif others is not None:
                other = self._tokens.load(codec.decode(others.reshape(-1)[row], "preferred_over"))
                if other.request_id == decision.request_id:
                    raise InvalidRequestError.of(
                        "preferred_over", "the token of another answer", "the same token"
                    )
                if other.tenant != decision.tenant:
                    raise InvalidRequestError.of(
                        "preferred_over", "a token of the same tenant", "another tenant's"
                    )
                body = {"better": describe(decision), "worse": describe(other)}
                events.append((PREFERENCE, body))
        for kind, body in events:
            self._log.append(kind, body)
        return len(events)

    def finalize(self) -> None:
        self._log.close()
