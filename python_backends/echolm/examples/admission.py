"""Which interactions may become examples, and in which form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from echolm.errors import InvalidRequestError
from echolm.examples.screening import Screen, Screened, build_screens, screen
from echolm.primitives import Interaction, check_tenant
from echolm.settings import Settings
from echolm.store.base import MAX_TEXT_BYTES
from echolm.store.checks import check_number, check_vector


@dataclass(frozen=True)
class AdmissionResult:
    """What becomes of an interaction.

    Attributes:
        interaction: as it may be stored; None if it is refused. Where its request was redacted,
            its embedding still is that of the text before.
        reason: why it is refused: a short word, used as a metric's label.
    """

    interaction: Interaction | None
    reason: str = ""

    @property
    def admitted(self) -> bool:
        return self.interaction is not None


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

    def judge(self, interaction: Interaction) -> AdmissionResult:
        """Whether an interaction may become an example, and in which form."""
        if reason := self._refusal(interaction):
            return AdmissionResult(None, reason)
        screened = self.screened(interaction.request, interaction.response, interaction.quality)
        if screened.reason:
            return AdmissionResult(None, screened.reason)
        admitted = replace(interaction, request=screened.request, response=screened.response)
        if (screened.request, screened.response) != (interaction.request, interaction.response):
            # What was redacted is nobody's answer any more.
            admitted = replace(admitted, answer_key="")
        return AdmissionResult(admitted)

    def screened(self, request: str, response: str, quality: float) -> Screened:
        """A request and its answer as they may be stored, whoever has given them."""
        if reason := self._unfit(request, response, quality):
            return Screened(request, response, reason)
        return screen(self._screens, request, response)

    def _refusal(self, interaction: Interaction) -> str:
        if not self._settings.enabled:
            return "disabled"
        if interaction.llm not in self._sources:
            return "source"
        if interaction.finish_reason != "stop":
            return "truncated"
        return _flaw(interaction)

    def _unfit(self, request: str, response: str, quality: float) -> str:
        settings = self._settings
        if len(response.strip()) < settings.min_response_chars:
            return "empty"
        if len(request) + len(response) > settings.max_interaction_chars:
            return "too_long"
        try:
            if max(len(text.encode()) for text in (request, response)) > MAX_TEXT_BYTES:
                return "too_long"
        except UnicodeEncodeError:
            return "not_text"
        return "" if quality >= settings.min_quality else "quality"


def _flaw(interaction: Interaction) -> str:
    """What an example cannot have; a word, empty if there is nothing."""
    embedding = interaction.embedding
    if not interaction.request.strip():
        return "empty"
    reason = "tenant"
    try:
        check_tenant(interaction.tenant)
        reason = "embedding"
        check_vector(embedding, embedding.size)
        reason = "quality"  # an LLM whose quality is unknown might have NaN
        check_number("quality", interaction.quality)
        check_number("help_probability", interaction.help_probability)
    except InvalidRequestError:
        return reason
    return "" if re.fullmatch("[0-9A-Za-z]{0,32}", interaction.answer_key) else "answer_key"
