"""How EchoLM's models know each other's calls."""

from __future__ import annotations

from echolm.errors import ConfigurationError
from echolm.internal_calls import CallProofs
from echolm.settings import Settings


def build_call_proofs(settings: Settings) -> CallProofs:
    """What signs and checks internal calls; ConfigurationError without a signing key."""
    key = settings.feedback.signing_key.get_secret_value()
    if not key:
        raise ConfigurationError(
            "feedback.signing_key: expected a secret, got none; `echolm serve` makes one; else all "
            "models need the same in ECHOLM_FEEDBACK__SIGNING_KEY"
        )
    return CallProofs(key)


def llm_call_proofs(settings: Settings) -> CallProofs | None:
    """What checks calls of an LLM model; None if everybody may call it.

    So it is in a Triton that has LLMs and no other part of EchoLM, and so no signing key.
    """
    open_to_all = settings.triton.direct_llm_calls
    key = settings.feedback.signing_key.get_secret_value()
    return None if open_to_all or not key else CallProofs(key)
