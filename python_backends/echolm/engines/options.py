"""Engine options: text from ``config.pbtxt`` or Python values to a frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from echolm.errors import ConfigurationError

T = TypeVar("T")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_options(kind: type[T], values: Mapping[str, Any], engine: str) -> T:
    """Build the options object ``kind`` (a dataclass of str, int, float and bool fields).

    Raises ConfigurationError if a key is unknown, or a value does not have its field's type.
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
        except (KeyError, ValueError) as error:
            raise wrong_option(engine, key, types[key].__name__, repr(value)) from error
    return kind(**converted)


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        return _BOOLEANS[value.strip().lower()]
    return kind(value)


def wrong_option(engine: str, name: str, expected: str, got: object) -> ConfigurationError:
    """The error of an option whose value cannot work."""
    return ConfigurationError(f"engine {engine}: option {name}: expected {expected}, got {got}")


def at_least(engine: str, options: object, least: float, *names: str) -> None:
    """Raises ConfigurationError if one of the named options is smaller."""
    for name in names:
        if (value := getattr(options, name)) < least:
            raise wrong_option(engine, name, f"at least {least}", value)
