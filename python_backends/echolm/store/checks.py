"""What an example has to be like, whatever brings it: a request, a file, a log, Milvus itself.

Every way into the store checks by :func:`check_example`, and so does whoever reads what may have
been written by other means: one bad row must not stop what is done with all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.primitives import MAX_TENANT_BYTES, check_tenant
from echolm.store.base import MAX_TEXT_BYTES, NEVER, Example, Stored

MAX_SOURCE_BYTES = MAX_ANSWER_KEYS_BYTES = 256
"""Of ``Example.source_llm``, and of ``answer_keys``."""
_MOST = 2**63 - 1
MOST_VALUE = 1e12
"""Of ``Example.value``: far more offloads than there can be."""

_INTEGERS = {
    "id": _MOST,
    "scope": _MOST,
    "created_at_ms": NEVER,
    "updated_at_ms": NEVER,
    "expires_at_ms": NEVER,
    "uses": _MOST,
    "replays": _MOST,
}
"""Largest value of each whole number; the least is 0."""
_NUMBERS = {"quality": 1.0, "value": MOST_VALUE}
"""Largest value of each number, which need not be whole; the least is 0."""
_TEXTS = {
    "request": MAX_TEXT_BYTES,
    "response": MAX_TEXT_BYTES,
    "tenant": 2 * MAX_TENANT_BYTES,  # what Milvus takes
    "source_llm": MAX_SOURCE_BYTES,
    "answer_keys": MAX_ANSWER_KEYS_BYTES,
}
"""Largest size in bytes of UTF-8."""
_MAY_BE_EMPTY = ("source_llm", "answer_keys")


def check_example(example: Example) -> None:
    """InvalidRequestError if an example must not get into a store."""
    check_fields(example)
    check_tenant(example.tenant)


def check_fields(example: Example) -> None:
    """InvalidRequestError if a field has another type, length or range than it may have.

    What is in a store already may have a tenant whose name is refused by now.
    """
    for name, most in _TEXTS.items():
        _check_text(name, getattr(example, name), most)
    for name, largest in _INTEGERS.items():
        value: Any = getattr(example, name)
        if type(value) is not int or not 0 <= value <= largest:
            raise InvalidRequestError.of(name, f"an integer from 0 to {largest}", value)
    for name, largest_number in _NUMBERS.items():
        check_number(name, getattr(example, name), largest_number)


def check_number(name: str, value: Any, most: float = 1.0) -> None:
    """InvalidRequestError if it is no finite number from 0 to ``most``."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not (usable and 0 <= value <= most):  # False for NaN
        raise InvalidRequestError.of(name, f"a number from 0 to {most:g}", value)


def check_stored(stored: Stored, dimension: int) -> None:
    """InvalidRequestError if an example, or its embedding of that dimension, is damaged."""
    example, embedding = stored
    check_fields(example)
    check_vector(embedding, dimension)


def check_vector(embedding: NDArray[Any], dimension: int) -> None:
    """InvalidRequestError if an ``embedding`` is not FP32 [dimension] and finite."""
    if embedding.shape != (dimension,):
        got = f"shape {list(embedding.shape)}"
        raise InvalidRequestError.of("embedding", f"shape [{dimension}], as configured", got)
    if not np.isfinite(embedding).all():
        raise InvalidRequestError.of("embedding", "finite numbers", "NaN or infinity")


def _check_text(name: str, value: Any, most: int) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError.of(name, "text", type(value).__name__)
    if not value and name not in _MAY_BE_EMPTY:
        raise InvalidRequestError.of(name, "text that is not empty", "empty text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        got = f"U+{ord(value[error.start]):04X}, half of a character, at {error.start}"
        raise InvalidRequestError.of(name, "text that UTF-8 can hold", got) from error
    if size > most:
        raise InvalidRequestError.of(name, f"at most {most} bytes of UTF-8", f"{size} bytes")
