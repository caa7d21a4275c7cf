"""Answers from the store: the arm of the router that no LLM serves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echolm.bandit.reuse import ReuseChoice, ReuseModel, context
from echolm.primitives import AUTO, STORED, Choice, Decision, Request, Retrieved, Reusable
from echolm.settings import Settings
from echolm.store.base import answer_key


def answer_key_of(settings: Settings, request: Request) -> str:
    """The key under which an answer to the request may be given again; empty if none may.

    Only answers of the strongest LLM are given again, and only where the caller wants the same
    answer each time.
    """
    sampling = request.sampling
    if settings.routing.reuse_error == 0.0 or not sampling.reproducible:
        return ""
    if sampling.wants_more_than_text:  # of an answer, only its text is stored
        return ""
    strongest = settings.strongest_llm
    return answer_key(sampling, strongest.name, strongest.revision)


@dataclass(frozen=True)
class StoredAnswers:
    """Draws which requests are answered from the store."""

    model: ReuseModel
    rng: np.random.Generator

    def choose(self, request: Request, retrieved: Retrieved) -> ReuseChoice | None:
        """What becomes of the stored answer that was found; None if there is none to give.

        A caller that names an LLM gets an answer of that LLM.
        """
        if retrieved.reusable is None or request.llm != AUTO or not request.use_examples:
            return None
        return self.model.choose(retrieved.reusable, float(self.rng.random()))


def stored_decision(
    request_id: str, tenant: str, found: Reusable, chosen: ReuseChoice
) -> tuple[Choice, Decision]:
    """The choice of a stored answer, and what a rating of it teaches about."""
    choice = Choice(STORED, chosen.propensity, {STORED: chosen.propensity}, chosen.probability)
    decision = Decision(
        request_id, tenant, STORED, context(found), choice.propensity, choice.quality, (found.id,)
    )
    return choice, decision
