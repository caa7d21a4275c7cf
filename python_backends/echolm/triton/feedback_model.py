"""The model ``feedback``: takes ratings and preferences into the learning log."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.learning.feedback import Feedback, FeedbackService
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.metrics import Metrics
from echolm.wiring.learning import build_feedback_tokens, open_event_log

_ACCEPTED = contracts.FEEDBACK.outputs[0]


class TritonPythonModel:
    """A rating is acknowledged once it is in the log for good."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._log = open_event_log(settings)
        self._service = FeedbackService(build_feedback_tokens(settings), self._log)
        self._metrics = Metrics()

    def execute(self, requests: list[Any]) -> list[Any]:
        responses = []
        for request in requests:
            try:
                rows = codec.read_rows(request, contracts.FEEDBACK.inputs)
                ratings = [Feedback(token=row.pop("feedback_token"), **row) for row in rows]
                for rated in self._service.accept(ratings):
                    self._metrics.count_rating("caller", rated.llm, rated.score, rated.predicted)
                self._metrics.add("echolm_ratings_total", len(rows), result="accepted")
                accepted = codec.tensor(_ACCEPTED, [[True]] * len(rows))
                responses.append(pb_utils.InferenceResponse([accepted]))
            except Exception as problem:
                self._metrics.add("echolm_ratings_total", result="refused")
                responses.append(codec.error_response(problem))
        self._metrics.flush()
        return responses

    def finalize(self) -> None:
        self._log.close()
