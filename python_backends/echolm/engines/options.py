"""Engine options: text from ``config.pbtxt`` or Python values to a frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from echolm.errors import ConfigurationError

T = TypeVar("T")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def read_options(kind: type[T], values: Mapping[str, Any], engine: str) -> T:
    """Build the options object ``kind`` (a dataclass of str, int, float and bool fields).

    Raises:
        ConfigurationError: a key is unknown, or a value does not have its field's type.
    """
    types = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(
                f"engine {engine}: expected options among {', '.join(known)}, got {key!r}"
            )
        try:
            converted[key] = _convert(types[key], value)
        except ValueError as error:
            raise ConfigurationError(
                f"engine {engine}: option {key}: expected {types[key].__name__}, got {value!r}"
            ) from error
    return kind(**converted)


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        lowered = value.strip().lower()
        if lowered in _TRUE:
            return True
        if lowered in _FALSE:
            return False
        raise ValueError(value)
    return kind(value)


def at_least(engine: str, name: str, value: float, least: float) -> None:
    """Raises ConfigurationError if an option is too small."""
    if value < least:
        raise ConfigurationError(
            f"engine {engine}: option {name}: expected at least {least}, got {value}"
        )
