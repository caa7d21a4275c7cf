"""Triton's module for python models, as far as reading and answering requests takes it.

The real one is inside Triton's own process only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TritonError:
    """An error with a status."""

    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"
    UNAVAILABLE, CANCELLED = "UNAVAILABLE", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        self.text, self.status = message, code


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass
class InferenceResponse:
    """Output tensors, or an error."""

    output_tensors: list[Tensor]
    error: TritonError | None = None


@dataclass
class Request:
    """Input arrays by name."""

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


def texts(*rows: bytes) -> NDArray[np.object_]:
    """BYTES [n, 1]."""
    return np.array([[row] for row in rows], dtype=np.object_)
