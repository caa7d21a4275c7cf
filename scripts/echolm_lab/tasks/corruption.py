"""Corrupts stored examples, to see whether the system finds out which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from echolm_lab.tasks.types import CorruptionKind, PastInteraction

KINDS: tuple[CorruptionKind, ...] = ("other_intent", "truncated", "changed_values")


def corrupt(
    interactions: Sequence[PastInteraction], share: float, seed: int
) -> list[PastInteraction]:
    """The same interactions, a share of them corrupted in the three ways by turns."""
    rng = random.Random(seed)
    corrupted = list(interactions)
    chosen = rng.sample(range(len(corrupted)), round(share * len(corrupted)))
    for number, index in enumerate(chosen):
        first = number % len(KINDS)
        # Not every answer can be corrupted in every way; the next way then.
        for kind in KINDS[first:] + KINDS[:first]:
            response = _corrupted_answer(kind, interactions[index], interactions, rng)
            if response is not None:
                corrupted[index] = replace(interactions[index], response=response, corruption=kind)
                break
    return corrupted


def _corrupted_answer(
    kind: CorruptionKind,
    interaction: PastInteraction,
    interactions: Sequence[PastInteraction],
    rng: random.Random,
) -> str | None:
    """The answer corrupted in one way; None if that way does not change this answer."""
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
