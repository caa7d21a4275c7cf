"""Which exchanges may become examples, and in which form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from echolm.examples.screening import Screen, build_screens, screen
from echolm.retrieval.store import MAX_TEXT_BYTES
from echolm.routing.service import Exchange
from echolm.settings import Settings


@dataclass(frozen=True)
class Verdict:
    """What becomes of an exchange.

    Attributes:
        exchange: as it may be stored; None if it is refused. Where its request was redacted, its
            embedding is of the text before.
        reason: why it is refused: a short word, used as a metric's label.
    """

    exchange: Exchange | None
    reason: str = ""

    @property
    def admitted(self) -> bool:
        return self.exchange is not None


class AdmissionPolicy:
    """Admits complete, non-empty answers of the configured LLMs that pass the screens.

    Args:
        screens: by default those of the settings.

    Raises:
        ConfigurationError: a configured screen needs a package that is not installed.
    """

    def __init__(self, settings: Settings, screens: Sequence[Screen] | None = None) -> None:
        self._settings = settings.examples
        self._sources = settings.example_sources
        self._screens = build_screens(settings.examples) if screens is None else screens

    def judge(self, exchange: Exchange) -> Verdict:
        """Decide on one exchange."""
        reason = self._refusal(exchange)
        if reason:
            return Verdict(None, reason)
        screened = screen(self._screens, exchange.request, exchange.response)
        if screened.reason:
            return Verdict(None, screened.reason)
        return Verdict(replace(exchange, request=screened.request, response=screened.response))

    def _refusal(self, exchange: Exchange) -> str:
        settings = self._settings
        texts = (exchange.request, exchange.response)
        if not settings.enabled:
            return "disabled"
        if exchange.llm not in self._sources:
            return "source"
        if exchange.finish_reason != "stop":
            return "truncated"
        if len(exchange.response.strip()) < settings.min_response_chars:
            return "empty"
        if sum(map(len, texts)) > settings.max_exchange_chars:
            return "too_long"
        if any(len(text.encode("utf-8")) > MAX_TEXT_BYTES for text in texts):
            return "too_long"
        if not np.isfinite(exchange.embedding).all():
            return "embedding"
        # Also False for NaN, which an LLM whose quality is unknown might have.
        return "" if exchange.quality >= settings.min_quality else "quality"
