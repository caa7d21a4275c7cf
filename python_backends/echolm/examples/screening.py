"""What must not be stored, or not as it is: secrets, injected instructions, personal data.

Screening finds what has a form: a key, a card number, "ignore all previous instructions". What has
none (a name, a harmful advice) passes; names need an NER model, for which ``PersonalData`` is the
place, and an example that makes answers worse is dropped by the utility model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from echolm.errors import ConfigurationError
from echolm.settings import ExamplesSettings


@dataclass(frozen=True)
class Screened:
    """An interaction after screening.

    Attributes:
        request, response: as they may be stored.
        reason: why they may not be; empty if they may. A short word, used as a metric's label.
    """

    request: str
    response: str
    reason: str = ""


Screen = Callable[[str, str], Screened]
"""Passes, changes or refuses a request and its response. For use by several threads."""


@dataclass(frozen=True)
class RefuseIf:
    """Refuses an interaction of which one text meets a condition."""

    matches: Callable[[str], bool]
    reason: str

    def __call__(self, request: str, response: str) -> Screened:
        refused = self.matches(request) or self.matches(response)
        return Screened(request, response, self.reason if refused else "")


# What they find has no fixed form, or is no secret.
_UNUSED_DETECTORS = {
    "Base64HighEntropyString",
    "HexHighEntropyString",
    "IbmCloudIamDetector",
    "IPPublicDetector",
    "KeywordDetector",
    "SoftlayerDetector",
}


def secret_finder() -> Callable[[str], bool]:
    """A function that tells whether a text holds a key, token or password (by detect-secrets).

    Only patterns of a fixed form are taken: entropy and keywords ("password =") would refuse
    much that is no secret.
    """
    # Imported here: a process that stores nothing needs none of it.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins: Iterable[Any] = get_mapping_from_secret_type_to_class().values()
    detectors = [plugin() for plugin in plugins if plugin.__name__ not in _UNUSED_DETECTORS]

    def holds_secret(text: str) -> bool:
        return any(next(iter(d.analyze_string(text)), None) is not None for d in detectors)

    return holds_secret


_INJECTIONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(ignore|disregard|forget|override|bypass)\b[^.\n]{0,30}"
        r"\b(previous|prior|above|earlier|preceding|foregoing|system|your|all)\b[^.\n]{0,30}"
        r"\b(instruction|prompt|rule|guideline|direction|command)s?\b",
        r"\b(do not|don't|never) (follow|obey|heed)\b[^.\n]{0,30}"
        r"\b(instruction|prompt|rule|guideline|direction)s?\b",
        r"\b(reveal|print|show|repeat|output|leak|tell me)\b[^.\n]{0,20}\b(your|the|its) "
        r"(system|hidden|initial|secret|original) (prompt|instruction|message)s?\b",
        r"\byou are now\b[^.\n]{0,40}\b(mode|unrestricted|jailbroken|dan)\b",
        r"\b(new|updated|revised) (system )?(instructions|prompt)\s*:",
        # Roles and turns of chat templates.
        r"<\|(im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id)\|>",
        r"\[/?INST\]|<</?SYS>>|<start_of_turn>|<end_of_turn>",
    )
)


def has_injection(text: str) -> bool:
    """Whether a text tries to give the LLM that reads it as an example other instructions."""
    return any(pattern.search(text) for pattern in _INJECTIONS)


class PersonalData:
    """Finds personal data with Presidio's recognisers of a fixed form: no NER model is needed.

    Args:
        entities: Presidio's names of what is looked for, e.g. ``EMAIL_ADDRESS``.
        redact: whether it is replaced by its name, as in ``<EMAIL_ADDRESS>``, or refused.

    Raises:
        ConfigurationError: Presidio is not installed, or knows no such entity.
    """

    _LEAST_SCORE = 0.4  # what Presidio gives a valid phone number without further context

    def __init__(self, entities: Sequence[str], redact: bool) -> None:
        self._entities = list(entities)
        self._redact = redact
        self._recognizers = _recognizers(self._entities)

    def __call__(self, request: str, response: str) -> Screened:
        cleaned = Screened(self._cleaned(request), self._cleaned(response))
        if not self._redact and cleaned != Screened(request, response):
            return Screened(request, response, "personal_data")
        return cleaned

    def _cleaned(self, text: str) -> str:
        results = [
            result
            for recognizer in self._recognizers
            for result in recognizer.analyze(text, self._entities, None) or ()
            if result.score >= self._LEAST_SCORE
        ]
        # From the end, so that earlier positions stay valid; of two that overlap, the surer counts.
        end = len(text)
        for result in sorted(results, key=lambda r: (-r.end, -r.score, r.start)):
            if result.end <= end:
                text = f"{text[: result.start]}<{result.entity_type}>{text[result.end :]}"
                end = result.start
        return text


def _recognizers(entities: Sequence[str]) -> list:  # type: ignore[type-arg]
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers as known
    except ImportError as error:
        raise ConfigurationError(
            f"examples.personal_data: Presidio cannot be imported ({error}); install the extra: "
            "pip install 'echolm[privacy]'"
        ) from error

    class EmailRecognizer(known.EmailRecognizer):
        """Presidio's recogniser, without a download of the list of domains at the first address."""

        _domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

        def validate_result(self, pattern_text: str) -> bool:
            return bool(self._domains(pattern_text).top_domain_under_public_suffix)

    recognizers = (
        EmailRecognizer(),
        known.CreditCardRecognizer(),
        known.CryptoRecognizer(),
        known.IbanRecognizer(),
        known.IpRecognizer(),
        known.PhoneRecognizer(),
        known.UsSsnRecognizer(),
    )
    supported = {entity for recognizer in recognizers for entity in recognizer.supported_entities}
    if unknown := sorted(set(entities) - supported):
        raise ConfigurationError(
            f"examples.personal_entities: expected some of {sorted(supported)}, got {unknown}"
        )
    return [r for r in recognizers if set(r.supported_entities) & set(entities)]


def build_screens(settings: ExamplesSettings) -> list[Screen]:
    """The checks as configured, those that refuse first."""
    screens: list[Screen] = []
    if settings.secrets == "refuse":
        screens.append(RefuseIf(secret_finder(), "secret"))
    if settings.injections == "refuse":
        screens.append(RefuseIf(has_injection, "injection"))
    if (choice := settings.personal_data) != "keep":
        screens.append(PersonalData(settings.personal_entities, redact=choice == "redact"))
    return screens


def screen(screens: Sequence[Screen], request: str, response: str) -> Screened:
    """Apply checks one after the other, up to the first that refuses."""
    result = Screened(request, response)
    for check in screens:
        result = check(result.request, result.response)
        if result.reason:
            break
    return result
