"""Reads Triton's metrics page (Prometheus text format)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from echolm_client._types import Sample, Stats

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse_samples(page: str) -> Iterator[Sample]:
    """The samples of a metrics page; comments and lines of no known form are passed over."""
    for line in page.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        name, labels, value = match.groups()
        try:
            number = float(value)
        except ValueError:
            continue
        yield Sample(
            name, {key: _unescape(text) for key, text in _LABEL.findall(labels or "")}, number
        )


def parse_stats(page: str) -> Stats:
    """What of a metrics page concerns EchoLM."""
    inferences: dict[str, int] = {}
    samples = []
    for sample in parse_samples(page):
        if sample.name == "nv_inference_count":
            # One line per model version, and per GPU where there is one.
            model = sample.labels.get("model", "")
            inferences[model] = inferences.get(model, 0) + int(sample.value)
        elif sample.name.startswith("echolm_"):
            samples.append(sample)
    return Stats(inferences, tuple(samples))


def _unescape(text: str) -> str:
    return re.sub(r"\\[\\\"n]", lambda match: _ESCAPES[match.group()], text)
