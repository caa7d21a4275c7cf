"""Training text and evaluation prompts made from the workload.

Training rows are lists of :class:`Turn`: interactions one behind the other, each
marked with whether its answer can be known there (and counts for the loss).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from echolm_lab.tasks import values
from echolm_lab.tasks.catalogue import invent
from echolm_lab.tasks.types import Draft, Intent, WorkItem
from echolm_lab.tasks.workload import Workload


@dataclass(frozen=True)
class Turn:
    """One interaction of a training row; the loss counts only where ``learn``."""

    request: str
    answer: str
    learn: bool


def system_prompt(rng: Random) -> str:
    """A random system prompt; answers never depend on it."""
    opening = rng.choice(("You are", "Act as", "Be", "You work as"))
    role = rng.choice(
        ("a helpful assistant", "the house assistant", "a careful clerk", "an expert")
    )
    rest = " ".join(values.word(rng) for _ in range(rng.randint(0, 4)))
    ending = rng.choice(("Be brief.", "Answer only.", ""))
    return f"{opening} {role} of {rest or 'the team'}. {ending}".strip()


def _interaction(source: Draft | Intent, rng: Random) -> tuple[str, str]:
    text, answer = rng.choice(source.wordings), source.answer
    for slot in source.slots:
        value = values.KINDS[slot.kind](rng)
        text, answer = text.replace(slot.mark, value), answer.replace(slot.mark, value)
    return text, answer


class ImitationRows:
    """Rows that teach a model to imitate examples: the small LLM's training.

    Nearly all intents are freshly invented, so that knowing answers by heart
    does not help. The first answer of an invented intent in a row cannot be
    known and is not learnt; later ones can be read off it. Intents of the
    catalogue that are not ``seen_by_small`` never occur.
    """

    def __init__(self, workload: Workload, rng: Random, known_share: float = 0.15) -> None:
        self._rng = rng
        self._known = [i for i in workload.intents if i.seen_by_small]
        self._known_share = known_share
        never = frozenset(
            (i.domain, i.subject.topic, i.subject.thing)
            for i in workload.intents
            if not i.seen_by_small
        )
        self._fresh = invent(rng, never)

    def alone(self) -> list[Turn]:
        """One interaction of a known intent, without examples."""
        return [Turn(*_interaction(self._rng.choice(self._known), self._rng), learn=True)]

    def row(self, turns: int) -> list[Turn]:
        """``turns`` interactions of a few intents in random order and wordings."""
        rng = self._rng
        sources: list[Draft | Intent] = []
        for _ in range(rng.randint(1, max(1, min(turns - 1, turns // 2 + 1)))):
            known = rng.random() < self._known_share
            sources.append(rng.choice(self._known) if known else next(self._fresh))
        met: set[int] = set()
        row = []
        for _ in range(turns):
            number = rng.randrange(len(sources))
            source = sources[number]
            learn = number in met or isinstance(source, Intent)
            met.add(number)
            row.append(Turn(*_interaction(source, rng), learn=learn))
        return row


class KnowledgeRows:
    """Rows of interactions of the whole catalogue: the large LLM's training."""

    def __init__(self, workload: Workload, rng: Random) -> None:
        self._rng = rng
        paired = {i.lookalike_of for i in workload.intents} | {
            i.id for i in workload.intents if i.lookalike_of is not None
        }
        self._intents = list(workload.intents)
        # Look-alikes and their bases are the hard ones: twice as often.
        self._intents += [i for i in workload.intents if i.id in paired]

    def alone(self) -> list[Turn]:
        return self.row(1)

    def row(self, turns: int) -> list[Turn]:
        return [
            Turn(*_interaction(self._rng.choice(self._intents), self._rng), learn=True)
            for _ in range(turns)
        ]


@dataclass(frozen=True)
class Trial:
    """One evaluation prompt: a request and the examples in front of it."""

    item: WorkItem
    examples: tuple[tuple[str, str], ...]
    seen_by_small: bool


class Trials:
    """Evaluation prompts over requests of a stream, examples drawn from the catalogue."""

    def __init__(self, workload: Workload, items: Sequence[WorkItem], seed: int = 0) -> None:
        self._workload = workload
        self._items = items
        self._seed = seed
        self._by_id = {intent.id: intent for intent in workload.intents}

    def __call__(self, relevant: int = 0, distracting: int = 0) -> Iterator[Trial]:
        """Trials with ``relevant`` examples of the request's own intent and ``distracting`` others.

        Relevant examples come in other wordings than the request where there are
        enough. Distracting ones are the look-alike where there is one, then
        intents of the same domain, those of the same topic first.
        """
        rng = Random(self._seed * 1009 + relevant * 31 + distracting)
        for item in self._items:
            intent = self._by_id[item.intent_id]
            examples = [self._example(intent, rng, avoid=item.text) for _ in range(relevant)]
            for other in self._others(intent, rng, distracting):
                examples.append(self._example(other, rng))
            rng.shuffle(examples)
            yield Trial(item, tuple(examples), intent.seen_by_small)

    def _example(self, intent: Intent, rng: Random, avoid: str = "") -> tuple[str, str]:
        for _ in range(4):
            example = self._workload.item(intent, rng)
            if example.text.split()[:3] != avoid.split()[:3]:
                break
        return example.text, example.answer

    def _others(self, intent: Intent, rng: Random, count: int) -> list[Intent]:
        def nearness(other: Intent) -> tuple[bool, bool, float]:
            twin = intent.id == other.lookalike_of or other.id == intent.lookalike_of
            return not twin, other.subject.topic != intent.subject.topic, rng.random()

        if not count:
            return []
        pool = [
            i for i in self._workload.intents if i.domain == intent.domain and i.id != intent.id
        ]
        return sorted(pool, key=nearness)[:count]
