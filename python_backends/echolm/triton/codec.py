"""Triton tensors to Python values and back, errors included."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm.contracts import Tensor
from echolm.errors import (
    CancelledError,
    EchoError,
    InvalidRequestError,
    UnavailableError,
)

logger = logging.getLogger("echolm")

NUMPY_TYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "FP32": np.float32,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
}


def read(request: Any, name: str) -> NDArray[Any] | None:
    """The input as an array, with its batch dimension if the model has one; None if absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def read_scalar(request: Any, name: str, default: Any = None) -> Any:
    """The single element of an input as a Python value; ``default`` if the input is absent.

    Raises:
        InvalidRequestError: the tensor does not hold exactly one element.
    """
    array = read(request, name)
    return default if array is None else scalar(array, name)


def scalar(array: NDArray[Any], name: str) -> Any:
    """The single element of an array; InvalidRequestError if it holds none or several."""
    if array.size != 1:
        raise InvalidRequestError.of(name, "one element", f"shape {list(array.shape)}")
    return array.reshape(-1)[0] if array.dtype == np.object_ else array.reshape(-1)[0].item()


def decode(value: bytes | str, name: str) -> str:
    """A BYTES element as text.

    Raises:
        InvalidRequestError: it is not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError.of(
            name, "UTF-8 text", f"byte 0x{value[error.start]:02x} at offset {error.start}"
        ) from error


def read_text(request: Any, name: str, default: str | None = None) -> str | None:
    """The single BYTES element of an input as text; ``default`` if the input is absent."""
    value = read_scalar(request, name)
    return default if value is None else decode(value, name)


def tensor(spec: Tensor, values: Any, shape: Sequence[int] | None = None) -> Any:
    """An output tensor of the contract's name and type.

    Args:
        values: an array, or a sequence of Python values; text may be ``str``.
        shape: the shape to give it; None keeps the shape that ``values`` has.
    """
    if spec.datatype == "BYTES":
        flat = [v.encode("utf-8") if isinstance(v, str) else v for v in values]
        array = np.empty(len(flat), dtype=np.object_)
        array[:] = flat
    else:
        array = np.asarray(values, dtype=NUMPY_TYPES[spec.datatype])
    return pb_utils.Tensor(spec.name, array if shape is None else array.reshape(tuple(shape)))


def error(problem: BaseException) -> Any:
    """The exception as a Triton error with the right status. Clients never see a traceback."""
    if isinstance(problem, InvalidRequestError):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(problem, UnavailableError):
        code = pb_utils.TritonError.UNAVAILABLE
    elif isinstance(problem, CancelledError):
        code = pb_utils.TritonError.CANCELLED
    else:
        code = pb_utils.TritonError.INTERNAL
    if isinstance(problem, EchoError):
        return pb_utils.TritonError(str(problem), code)
    logger.error("unexpected error", exc_info=problem)
    return pb_utils.TritonError(
        f"internal error: {type(problem).__name__}; see the server's log", code
    )


def error_response(problem: BaseException) -> Any:
    """A response that carries only the error."""
    return pb_utils.InferenceResponse(output_tensors=[], error=error(problem))
