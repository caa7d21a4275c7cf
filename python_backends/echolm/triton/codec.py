"""Triton tensors to Python values and back, errors included."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm.contracts import Tensor
from echolm.errors import InvalidRequestError
from echolm.internal_calls import ASKED, PROOF, CallProofs, contents
from echolm.store.checks import check_vector
from echolm.triton import rows


def read(request: Any, name: str) -> NDArray[Any] | None:
    """The input as an array, with its batch dimension if the model has one; None if absent."""
    found = pb_utils.get_input_tensor_by_name(request, name)
    return None if found is None else found.as_numpy()


def _arrays(request: Any, specs: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    # Looking for each by its name takes longer: most are optional, and few are there.
    names = {spec.name for spec in specs}
    return {t.name(): t.as_numpy() for t in request.inputs() if t.name() in names}


def read_rows(request: Any, specs: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The rows of a batched request, as :func:`echolm.triton.rows.read_rows` gives them."""
    return rows.read_rows(_arrays(request, specs), specs)


def read_each(request: Any, specs: Sequence[Tensor]) -> list[dict[str, Any] | InvalidRequestError]:
    """The rows of several callers, as :func:`echolm.triton.rows.read_each` gives them."""
    return rows.read_each(_arrays(request, specs), specs)


def read_embedded(request: Any, specs: Sequence[Tensor], dimension: int) -> list[dict[str, Any]]:
    """As :func:`read_rows`, of inputs with an embedding of this dimension."""
    embedded = read_rows(request, specs)
    for row in embedded:
        check_vector(row["embedding"], dimension)
    return embedded


def check_proof(
    request: Any, proofs: CallProofs, purpose: str, names: Collection[str] | None = ASKED
) -> None:
    """Raise InvalidRequestError unless EchoLM itself has sent the request.

    Args:
        names: of the signed inputs; None: all.
    """
    parameters = json.loads(request.parameters() or "{}")
    signed = {
        tensor.name(): contents(tensor.as_numpy())
        for tensor in request.inputs()
        if names is None or tensor.name() in names
    }
    proofs.check(purpose, signed, parameters.get(PROOF))


def tensor(spec: Tensor, values: Any, shape: Sequence[int] | None = None) -> Any:
    """An output tensor of the contract's name and type; see :func:`echolm.triton.rows.to_array`."""
    return pb_utils.Tensor(spec.name, rows.to_array(spec, values, shape))


def text_tensor(name: str, text: str) -> Any:
    """A BYTES tensor [1, 1]: what :func:`tensor` makes, cheaper for the pieces of a stream."""
    array = np.empty((1, 1), np.object_)
    array[0, 0] = text.encode()
    return pb_utils.Tensor(name, array)


def tensors(specs: Sequence[Tensor], n: int, columns: Mapping[str, Any]) -> list[Any]:
    """Tensors [n, …] of those specs that have a column.

    Args:
        columns: by a tensor's name, the values of all rows one after the other.
    """
    return [tensor(spec, columns[spec.name], (n, -1)) for spec in specs if spec.name in columns]


def error_response(problem: BaseException) -> Any:
    """A response that carries only the error."""
    status, message = rows.error_text(problem)
    kind = pb_utils.TritonError
    error = kind(message, getattr(kind, status, kind.INTERNAL))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
