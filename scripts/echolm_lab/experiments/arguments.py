"""Kinds of command-line arguments that several commands take."""

from __future__ import annotations

import argparse


def numbers(text: str) -> list[int]:
    """Integers with commas between them."""
    return [int(part) for part in text.split(",")]


def option(text: str) -> tuple[str, str]:
    """``KEY=VALUE``."""
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
