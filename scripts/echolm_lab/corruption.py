"""Spoils stored examples, to see whether the system finds out which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from echolm_lab.tasks import WorkItem

CorruptionKind = Literal["other_intent", "truncated", "changed_values"]
KINDS: tuple[CorruptionKind, ...] = ("other_intent", "truncated", "changed_values")


@dataclass(frozen=True)
class Interaction:
    """A past request and the large LLM's answer to it.

    Attributes:
        corruption: how the answer was spoilt; None: as it was given.
    """

    item: WorkItem
    response: str
    corruption: CorruptionKind | None = None


def corrupt(interactions: Sequence[Interaction], share: float, seed: int) -> list[Interaction]:
    """The same interactions, a share of them spoilt in the three ways by turns."""
    rng = random.Random(seed)
    spoilt = list(interactions)
    chosen = rng.sample(range(len(spoilt)), round(share * len(spoilt)))
    for number, index in enumerate(chosen):
        first = number % len(KINDS)
        # Not every answer can be spoilt in every way; the next way then.
        for kind in KINDS[first:] + KINDS[:first]:
            response = _spoil(kind, interactions[index], interactions, rng)
            if response is not None:
                spoilt[index] = replace(interactions[index], response=response, corruption=kind)
                break
    return spoilt


def _spoil(
    kind: CorruptionKind,
    interaction: Interaction,
    interactions: Sequence[Interaction],
    rng: random.Random,
) -> str | None:
    """The spoilt answer; None if this one cannot be spoilt so."""
    item = interaction.item
    if kind == "other_intent":
        others = [
            other.response
            for other in interactions
            if other.item.domain == item.domain and other.item.intent_id != item.intent_id
        ]
        return rng.choice(others) if others else None
    if kind == "truncated":
        words = interaction.response.split(" ")
        return " ".join(words[: len(words) // 2]) if len(words) > 3 else None
    response = interaction.response
    for value in item.slot_values:
        response = response.replace(value, _other_value(value, rng))
    return response if response != interaction.response else None


def _other_value(value: str, rng: random.Random) -> str:
    """A value of the same look: other letters, other digits."""
    return "".join(
        rng.choice("0123456789") if c.isdigit() else _letter(c, rng) if c.isalpha() else c
        for c in value
    )


def _letter(like: str, rng: random.Random) -> str:
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return letter.upper() if like.isupper() else letter
