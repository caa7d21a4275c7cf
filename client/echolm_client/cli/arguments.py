"""Types of command-line arguments; their errors say what was expected."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = argparse._SubParsersAction  # not subscriptable at run time


def add_verb(subparsers: Subparsers, name: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of one more verb; ``options`` as for ``add_parser``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, **options)
    return parser


def as_number(text: str) -> float:
    """The number; NaN, which lies in no range, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def seconds(text: str) -> float:
    """A time above 0 s."""
    value = as_number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0 stands for a free one."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port (0 to 65535), got {text!r}")
    return int(text)


def not_empty(text: str) -> str:
    """A text of at least one character."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a text, got an empty one")
    return text


def key_value(text: str) -> tuple[str, str]:
    """``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value
