"""Conversations: what EchoLM scores on dialogues, and whether requests that only look alike answer
for one another.

Embedding, search, selection, routing, admission and learning are the product's, in simulated time
(:mod:`echolm_lab.experiments.simulation`). The LLMs are simulated: the demo's were not trained on
conversations. The small one takes over the answer of an example that ends as the request does, and
every stored answer that may be given is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from echolm.bandit.reuse import ReuseChoice, ReuseModel
from echolm.primitives import AUTO, Reusable
from echolm.router.stored import StoredAnswers

from echolm_lab.experiments.cold_start import Lab
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.experiments.simulated_llms import Skill
from echolm_lab.experiments.simulation import Record, Simulation, request_of
from echolm_lab.report.check import Check
from echolm_lab.tasks.conversations import Dialogue, DialogueSource, past_requests, said
from echolm_lab.tasks.second_workload import LabelledRequest

SMALL, LARGE = Skill.uniform(0.3, 0.99), Skill.uniform(0.996, 0.996)
"""About as the shipped pair is on its own workload."""

_PAST, _BEFORE = 2_000, 1_000  # dialogues that are stored, and those served before it is measured
_PAST_SEED = 10_000


class _Trusting(ReuseModel):
    """Gives every stored answer that was found."""

    def choose(self, found: Reusable, uniform: float) -> ReuseChoice:
        return ReuseChoice("give", 1.0, 1.0)


async def conversations(
    lab: Lab,
    source: DialogueSource,
    seed: int,
    dialogues: int = 300,
    look_alikes: int = 200,
    long: int = 100,
) -> Outcome:
    """The score of dialogues, and wrong reuse."""
    simulation = lab.start(seed, SMALL, LARGE, rated=0.2)
    small, large = sorted(simulation.llms, key=lambda name: lab.settings.relative_costs[name])
    simulation.llms[small].copies = True
    simulation.fill(list(past_requests(source, source.stream(_PAST, _PAST_SEED + seed))))
    stream = source.stream(_BEFORE + dialogues, seed)
    for dialogue in stream[:_BEFORE]:
        await _serve(simulation, source, dialogue)
    served = [await _serve(simulation, source, d) for d in stream[_BEFORE:]]
    records = [record for dialogue in served for record in dialogue]

    def alone(name: str) -> float:
        """The score of one LLM for all of these requests, without examples."""
        llm = simulation.llms[name]
        return float(np.mean([llm.answer(r.item, []) == r.item.answer for r in records]))

    score, offloaded = (
        float(np.mean(values))
        for values in ([r.right for r in records], [r.llm != large for r in records])
    )
    follow_ups = [record for dialogue in served for record in dialogue[1:]]
    pairs = [pair for dialogue in served for pair in pairwise(dialogue)]
    model = _Trusting(lab.settings.routing.reuse_error or 0.01)
    simulation.front_door.service.stored = StoredAnswers(model, np.random.default_rng(seed))
    alike = await _confused(simulation, source, source.look_alikes(look_alikes, seed), small)
    long_alike = await _confused(simulation, source, source.long_pairs(long, seed), small)
    figures = {
        "dialogues": len(served),
        "requests": len(records),
        "score": score,
        "score, always large": alone(large),
        "score, always small": alone(small),
        "offloaded": offloaded,
        "offloaded, follow-ups": float(np.mean([r.llm != large for r in follow_ups])),
        "helped, follow-ups": float(np.mean([r.helped for r in follow_ups])),
        "moved to another LLM": float(np.mean([a.llm != b.llm for a, b in pairs])),
    }
    return Outcome(
        (
            Check("score below that of always large", 0.01, alone(large) - score, "at_most"),
            Check("offloaded", 0.6, offloaded),
            Check(f"look-alikes reused, of {look_alikes}", 0.0, alike, "at_most"),
            Check(f"long requests confused, of {long}", 0.0, long_alike, "at_most"),
        ),
        figures,
    )


async def _serve(
    simulation: Simulation, source: DialogueSource, dialogue: Dialogue
) -> list[Record]:
    """One dialogue, in which every turn has the answers that were really given before it."""
    [record] = await simulation.serve([dialogue.first])
    records, history = [record], [*said(dialogue.first, record.answer)]
    for kind, text in dialogue.follow_ups:
        item = source.follow_up(dialogue.first, kind, text, history)
        [record] = await simulation.serve([item])
        records.append(record)
        history += said(item, record.answer)
    return records


async def _confused(
    simulation: Simulation,
    source: DialogueSource,
    pairs: Sequence[tuple[LabelledRequest, LabelledRequest]],
    small: str,
) -> int:
    """How many requests get an answer that belongs to another request, with another beginning.

    Of each pair one is stored and the other asked, twice: as callers do, and of the small LLM.
    """
    confused = 0
    for stored, asked in pairs:
        simulation.fill([stored])
        simulation.truth.add([asked])
        wrong = False
        for llm in (AUTO, small):
            request = replace(request_of(asked), llm=llm)
            answer = await simulation.front_door.answer(request)
            known = simulation.truth.answers.get(answer.text)
            wrong |= known is not None and source.first(known) != source.first(asked.intent)
        confused += wrong
    return confused
