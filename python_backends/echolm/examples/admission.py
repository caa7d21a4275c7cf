"""Which exchanges may become examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echolm.retrieval.store import MAX_TEXT_BYTES
from echolm.routing.service import Exchange
from echolm.settings import Settings


@dataclass(frozen=True)
class Verdict:
    """Whether an exchange is admitted, and why not: a short word, used as a metric's label."""

    admitted: bool
    reason: str = ""


ADMITTED = Verdict(True)


class AdmissionPolicy:
    """Admits complete, non-empty answers of the configured LLMs within the size limits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.examples
        self._sources = settings.example_sources

    def judge(self, exchange: Exchange) -> Verdict:
        """Decide on one exchange."""
        if not self._settings.enabled:
            return Verdict(False, "disabled")
        if exchange.llm not in self._sources:
            return Verdict(False, "source")
        if exchange.finish_reason != "stop":
            return Verdict(False, "truncated")
        if len(exchange.response.strip()) < self._settings.min_response_chars:
            return Verdict(False, "empty")
        if len(exchange.request) + len(exchange.response) > self._settings.max_exchange_chars:
            return Verdict(False, "too_long")
        if any(
            len(t.encode("utf-8")) > MAX_TEXT_BYTES for t in (exchange.request, exchange.response)
        ):
            return Verdict(False, "too_long")
        if not np.isfinite(exchange.embedding).all():
            return Verdict(False, "embedding")
        return ADMITTED
