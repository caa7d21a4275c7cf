"""Models that answer all requests of a dynamic batch with one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import triton_python_backend_utils as pb_utils

from echolm.triton import codec

Row = TypeVar("Row")
Result = TypeVar("Result")


class BatchedModel(Generic[Row, Result]):
    """A model's ``execute``, around what the model does with the rows of all requests.

    A bad request fails alone. A failure of the shared call is an error of each request, since none
    is to blame more than another.
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
        responses: list[Any] = [None] * len(requests)
        rows: list[Row] = []
        parts: dict[int, slice] = {}
        for i, request in enumerate(requests):
            try:
                request_rows = self.read(request)
            except Exception as problem:
                responses[i] = codec.error_response(problem)
                continue
            parts[i] = slice(len(rows), len(rows) + len(request_rows))
            rows += request_rows
        if not rows:
            return responses
        try:
            results = self.run(rows)
            for i, part in parts.items():
                responses[i] = pb_utils.InferenceResponse(self.tensors(results[part]))
        except Exception as problem:
            for i in parts:
                responses[i] = codec.error_response(problem)
        return responses
