"""The model ``feedback``: takes ratings and preferences into the learning log."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.errors import InvalidRequestError
from echolm.learning.feedback import Feedback, FeedbackService
from echolm.learning.tokens import FeedbackTokens
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.metrics import Metrics, count_rating
from echolm.wiring import open_event_log

_ACCEPTED = contracts.FEEDBACK.outputs[0]


class TritonPythonModel:
    """A rating is acknowledged once it is in the log for good."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        tokens = FeedbackTokens(
            settings.feedback.signing_key.get_secret_value(), settings.feedback.token_ttl_s
        )
        self._log = open_event_log(settings)
        self._service = FeedbackService(tokens, self._log)
        self._metrics = Metrics()

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            try:
                rows = read_feedback(request)
                for rated in self._service.accept(rows):
                    count_rating(self._metrics, "caller", rated.llm, rated.score, rated.predicted)
                self._metrics.add("echolm_ratings_total", len(rows), result="accepted")
                accepted = codec.tensor(_ACCEPTED, [True] * len(rows), (len(rows), 1))
                responses.append(pb_utils.InferenceResponse([accepted]))
            except Exception as problem:
                self._metrics.add("echolm_ratings_total", result="refused")
                responses.append(codec.error_response(problem))
        self._metrics.flush()
        return responses

    def finalize(self) -> None:
        self._log.close()


def read_feedback(request: Any) -> list[Feedback]:
    """The rows of one Triton request; InvalidRequestError if a text is not UTF-8."""
    arrays = {spec.name: codec.read(request, spec.name) for spec in contracts.FEEDBACK.inputs}
    tokens = arrays["feedback_token"]
    if tokens is None:
        raise InvalidRequestError.of("feedback_token", "a BYTES tensor of shape [1, 1]", "none")

    def text(name: str, row: int) -> str | None:
        array = arrays[name]
        return None if array is None else codec.decode(array.reshape(-1)[row], name)

    scores = arrays["score"]
    return [
        Feedback(
            token=codec.decode(token, "feedback_token"),
            score=None if scores is None else float(scores.reshape(-1)[row]),
            preferred_over=text("preferred_over", row),
            tenant=text("tenant", row),
        )
        for row, token in enumerate(tokens.reshape(-1))
    ]
