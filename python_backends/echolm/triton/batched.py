"""Models that answer all requests of a dynamic batch with one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

import triton_python_backend_utils as pb_utils

from echolm.triton import codec
from echolm.triton.rows import Result, Row, answer_together


class BatchedModel(Generic[Row, Result]):
    """A model's ``execute``, around what the model does with the rows of all requests.

    For which request an error counts is told in :func:`echolm.triton.rows.answer_together`.
    """

    def read(self, request: Any) -> list[Row]:
        """The rows of one request; what it raises is this request's error."""
        raise NotImplementedError

    def run(self, rows: Sequence[Row]) -> Sequence[Result]:
        """A result for each of one or more rows, in order."""
        raise NotImplementedError

    def tensors(self, results: Sequence[Result]) -> list[Any]:
        """The output tensors of one request with these results."""
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        """Triton's entry: one response for each request, in order."""
        return [self._response(a) for a in answer_together(requests, self.read, self.run)]

    def _response(self, answer: Sequence[Result] | Exception) -> Any:
        if not isinstance(answer, Exception):
            try:
                return pb_utils.InferenceResponse(self.tensors(answer))
            except Exception as problem:
                answer = problem
        return codec.error_response(answer)
