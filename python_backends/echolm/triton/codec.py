"""Triton tensors to Python values and back, errors included."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm.contracts import Tensor
from echolm.errors import EchoError, InvalidRequestError, coded

logger = logging.getLogger("echolm")


def read(request: Any, name: str) -> NDArray[Any] | None:
    """The input as an array, with its batch dimension if the model has one; None if absent."""
    found = pb_utils.get_input_tensor_by_name(request, name)
    return None if found is None else found.as_numpy()


def read_rows(request: Any, specs: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The rows of a batched request: the value of each input by its name.

    A value is text or a Python number, or a list of texts or an array where the length is variable.
    Inputs that did not come are missing.

    Raises:
        InvalidRequestError: there is no row, an input that is not optional is missing, inputs have
            different numbers of rows, a row has several elements where the contract has one, or a
            text is not UTF-8.
    """
    columns = {}
    for spec in specs:
        array = read(request, spec.name)
        if array is not None:
            columns[spec.name] = [_cell(cell, spec) for cell in array]
        elif not spec.optional:
            dims = ", ".join(["n", *map(str, spec.dims)])
            expected = f"a {spec.datatype} tensor of shape [{dims}]"
            raise InvalidRequestError.of(spec.name, expected, "none")
    counts = {name: len(cells) for name, cells in columns.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InvalidRequestError.of("batch", "one row or more, as many of each input", counts)
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def read_embedded(request: Any, specs: Sequence[Tensor], dimension: int) -> list[dict[str, Any]]:
    """As :func:`read_rows`, of inputs with an embedding of this dimension."""
    rows = read_rows(request, specs)
    for embedding in (row["embedding"] for row in rows):
        if embedding.shape != (dimension,):
            got = f"shape [{len(rows)}, {embedding.size}]"
            raise InvalidRequestError.of("embedding", f"shape [n, {dimension}], as configured", got)
        # All rows of a batch go to the store together, and it would refuse all for this one.
        if not np.isfinite(embedding).all():
            raise InvalidRequestError.of("embedding", "finite numbers", "NaN or infinity")
    return rows


def _cell(cell: NDArray[Any], spec: Tensor) -> Any:
    """One input's value in one row."""
    if -1 in spec.dims:
        if spec.datatype == "BYTES":
            return [_text(value, spec.name) for value in cell.reshape(-1)]
        return np.array(cell)  # a copy, since Triton's memory goes with the request
    if cell.size != 1:
        raise InvalidRequestError.of(spec.name, "one element", f"shape {list(cell.shape)}")
    value = cell.reshape(-1)[0]
    return _text(value, spec.name) if spec.datatype == "BYTES" else value.item()


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{value[error.start]:02x} at offset {error.start}"
        raise InvalidRequestError.of(name, "UTF-8 text", got) from error


def tensor(spec: Tensor, values: Any, shape: Sequence[int] | None = None) -> Any:
    """An output tensor of the contract's name and type.

    Args:
        values: an array, or a sequence of Python values; text may be ``str``.
        shape: None keeps the shape that ``values`` has.
    """
    if spec.datatype == "BYTES":
        flat = [v.encode("utf-8") if isinstance(v, str) else v for v in values]
        array = np.empty(len(flat), dtype=np.object_)
        array[:] = flat
    else:
        # Triton's types have numpy's names, but for FP32 and its like.
        array = np.asarray(values, dtype=spec.datatype.lower().replace("fp", "float"))
    return pb_utils.Tensor(spec.name, array if shape is None else array.reshape(tuple(shape)))


def tensors(specs: Sequence[Tensor], rows: int, columns: Mapping[str, Any]) -> list[Any]:
    """Tensors [rows, …] of those specs that have a column.

    Args:
        columns: by a tensor's name, the values of all rows one after the other.
    """
    return [tensor(spec, columns[spec.name], (rows, -1)) for spec in specs if spec.name in columns]


def padded(rows: Sequence[Sequence[Any]], fill: Any) -> list[Any]:
    """The values of all rows one after the other, each row filled up to the longest."""
    width = max(len(row) for row in rows)
    return [value for row in rows for value in [*row, *[fill] * (width - len(row))]]


def error_response(problem: BaseException) -> Any:
    """A response that carries only the error, its code in front. Clients never see a traceback."""
    if isinstance(problem, EchoError):
        code, message = problem.code, str(problem)
    else:
        logger.error("unexpected error", exc_info=problem)
        code = EchoError.code
        message = f"internal error: {type(problem).__name__}; see the server's log"
    # Other codes are names of Triton's status as well, or stand for an internal error.
    status = "INVALID_ARG" if isinstance(problem, InvalidRequestError) else code.upper()
    kind = pb_utils.TritonError
    error = kind(coded(code, message), getattr(kind, status, kind.INTERNAL))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
