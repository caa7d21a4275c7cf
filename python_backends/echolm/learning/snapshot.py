"""Learnt state as bytes, and fingerprints of what it was learnt under."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import finite

_HEADER = "header"
_ARRAY = "__array__"


def pack(state: Mapping[str, Any]) -> bytes:
    """The state as an npz file: its arrays, and a JSON header with their places in it.

    Numbers come back bit by bit. Tuples come back as lists.

    Args:
        state: JSON values and arrays of numbers, nested in dicts with text keys and in lists.

    Raises:
        TypeError: something else is in it.
    """
    arrays: dict[str, NDArray[Any]] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise TypeError("state: expected arrays of numbers, got one of objects")
            name = str(len(arrays))
            arrays[name] = value
            return {_ARRAY: name}
        if isinstance(value, Mapping):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"state: expected keys of text, got {wrong[0]!r}")
            return {key: strip(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    header = json.dumps(strip(state), separators=(",", ":")).encode()
    file = io.BytesIO()
    np.savez_compressed(file, **{_HEADER: np.frombuffer(header, np.uint8)}, **arrays)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """The state that :func:`pack` made bytes of.

    Raises:
        ValueError: they are damaged, or a number in them is not finite.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for array in arrays.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("expected finite numbers")

        def fill(value: dict[str, Any]) -> Any:
            return arrays[value[_ARRAY]] if value.keys() == {_ARRAY} else value

        header = arrays[_HEADER].tobytes()
        state = json.loads(header, object_hook=fill, parse_constant=finite, parse_float=finite)
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own
        raise ValueError(f"damaged: {error!r}") from error
    if not isinstance(state, dict):
        raise ValueError(f"expected a dict, got {type(state).__name__}")
    return state


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """A short text that differs whenever the configuration, in the form of a state, does."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), content]
        raise TypeError(f"configuration: expected JSON values and arrays, got {value!r}")

    text = json.dumps(configuration, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
