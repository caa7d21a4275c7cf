"""Rows of batched requests and columns of responses, without Triton.

What can be wrong with a request's arrays, and what becomes of a batch in which a request is wrong,
is decided here; :mod:`echolm.triton.codec` and :mod:`echolm.triton.batched` bring Triton's objects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from echolm.contracts import Tensor
from echolm.errors import EchoError, InvalidRequestError, coded, public_message
from echolm.primitives import decode

logger = logging.getLogger("echolm")

Request = TypeVar("Request")
Row = TypeVar("Row")
Result = TypeVar("Result")


def read_rows(arrays: Mapping[str, NDArray[Any]], specs: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The rows of a batched request's arrays: the value of each input by its name.

    A value is text or a Python number, or a list of texts or an array where the length is variable.
    Inputs that did not come are missing.

    Raises:
        InvalidRequestError: there is no row, an input that is not optional is missing, inputs have
            different numbers of rows, a row has several elements where the contract has one, or a
            text is not UTF-8.
    """
    columns = {}
    for spec in specs:
        array = arrays.get(spec.name)
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


def read_each(
    arrays: Mapping[str, NDArray[Any]], specs: Sequence[Tensor]
) -> list[dict[str, Any] | InvalidRequestError]:
    """As :func:`read_rows`, of rows that several callers may have sent.

    What is wrong with a row stands in its place. Which inputs there are is not checked.
    """
    given = [(spec, arrays[spec.name]) for spec in specs if spec.name in arrays]
    rows: list[dict[str, Any] | InvalidRequestError] = []
    for cells in zip(*(array for _, array in given), strict=True):
        try:
            rows.append({s.name: _cell(c, s) for (s, _), c in zip(given, cells, strict=True)})
        except InvalidRequestError as error:
            rows.append(error)
    return rows


def _cell(cell: NDArray[Any], spec: Tensor) -> Any:
    """One input's value in one row."""
    if -1 in spec.dims:
        if spec.datatype == "BYTES":
            return [decode(value, spec.name) for value in cell.reshape(-1)]
        return np.array(cell)  # a copy, since Triton's memory goes with the request
    if cell.size != 1:
        raise InvalidRequestError.of(spec.name, "one element", f"shape {list(cell.shape)}")
    value = cell.reshape(-1)[0]
    return decode(value, spec.name) if spec.datatype == "BYTES" else value.item()


def to_array(spec: Tensor, values: Any, shape: Sequence[int] | None = None) -> NDArray[Any]:
    """An array of the contract's type.

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
    return array if shape is None else array.reshape(tuple(shape))


def error_text(problem: BaseException) -> tuple[str, str]:
    """Triton's status of an error, and its message with the code in front: never a traceback."""
    if isinstance(problem, EchoError):
        code, message = problem.code, public_message(problem)
    else:
        logger.error("unexpected error", exc_info=problem)
        code = EchoError.code
        message = f"internal error: {type(problem).__name__}; see the server's log"
    # Other codes are names of Triton's status as well, or stand for an internal error.
    status = "INVALID_ARG" if isinstance(problem, InvalidRequestError) else code.upper()
    return status, coded(code, message)


def answer_together(
    requests: Sequence[Request],
    read: Callable[[Request], Sequence[Row]],
    run: Callable[[Sequence[Row]], Sequence[Result]],
) -> list[Sequence[Result] | Exception]:
    """Results of each request's rows from one call for all of them, or what was wrong with it.

    A bad request fails alone. A failure of the shared call is an error of each request, since none
    is to blame more than another.
    """
    answers: list[Sequence[Result] | Exception] = [()] * len(requests)
    rows: list[Row] = []
    parts: dict[int, slice] = {}
    for i, request in enumerate(requests):
        try:
            request_rows = read(request)
            if not request_rows:
                raise InvalidRequestError.of("batch", "one row or more", "none")
        except Exception as problem:
            answers[i] = problem
            continue
        parts[i] = slice(len(rows), len(rows) + len(request_rows))
        rows += request_rows
    if rows:
        try:
            results = run(rows)
        except Exception as problem:
            return [problem if i in parts else answer for i, answer in enumerate(answers)]
        for i, part in parts.items():
            answers[i] = results[part]
    return answers
