"""Gauges of models that are down, of which Triton shows what they said last."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from echolm.contracts import EXAMPLE_MANAGER
from echolm.telemetry import METRICS

_UNLABELLED = {
    "echolm_examples_pending": EXAMPLE_MANAGER.name,
    "echolm_examples_pending_limit": EXAMPLE_MANAGER.name,
    "echolm_examples_stored": EXAMPLE_MANAGER.name,
    "echolm_example_bytes": EXAMPLE_MANAGER.name,
    "echolm_example_store_up": EXAMPLE_MANAGER.name,
}
"""The models of gauges that have no label ``model``."""
_SAMPLE = re.compile(rb'(echolm_\w+)(\{(?:.*[{,])?model="([^"]*)".*\}|\{.*\})? (\S+)')
_INSTANCE = re.compile(r"_\d+_\d+$")
_WORKS = ("_ready", "_up")
"""Ends of the names of gauges that say whether something works."""


def without_frozen(page: bytes, down: Collection[str], owners: Mapping[str, str]) -> bytes:
    """A page of metrics on which models that are down say that nothing works, and nothing else.

    Args:
        owners: the model that reports a value of the label ``model`` that is no model's name.
    """
    if not down:
        return page

    def shown(line: bytes) -> bytes | None:
        sample = _SAMPLE.fullmatch(line)
        name = sample[1].decode() if sample else ""
        if sample is None or name not in METRICS or METRICS[name].kind != "gauge":
            return line
        label = (sample[3] or b"").decode()
        model = owners.get(label) or _UNLABELLED.get(name) or _INSTANCE.sub("", label)
        if label not in down and model not in down:
            return line
        return line.removesuffix(sample[4]) + b"0" if name.endswith(_WORKS) else None

    lines = map(shown, page.split(b"\n"))
    return b"\n".join(line for line in lines if line is not None)
