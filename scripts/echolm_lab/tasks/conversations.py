"""Dialogues: requests of the second workload, each followed by questions that do not repeat them.

A follow-up says nothing of what it is about ("And what would that cost me?"), and the same words
follow requests of all intents: what is the right answer only the turns before them tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from echolm.conversation import Turn

from echolm_lab.tasks.catalogue import derived
from echolm_lab.tasks.second_workload import LabelledRequest, SecondWorkload, made_up_word

_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "And what would that cost me?",
            "How much is that going to be?",
            "What do I have to pay for it?",
            "And the price of all this?",
            "Is that expensive?",
        ),
        "Reckon with {n} crowns, of which {m} go to the {w} fund.",
    ),
    (
        (
            "How long will that take?",
            "And when can I expect it to be done?",
            "Is that a matter of hours or of weeks?",
            "How much time should I plan for it?",
        ),
        "It takes {n} hours as a rule, and {m} more where a {w} is needed.",
    ),
    (
        (
            "And for a child?",
            "Is it the same with children?",
            "What if it is for my son, who is six?",
            "Would you say the same to a ten-year-old?",
        ),
        "Children come under the {w} rule: a part in {n}, and never before noon on day {m}.",
    ),
    (
        (
            "Does that also hold abroad?",
            "And outside the country?",
            "What about other countries?",
            "Would it be different if I lived elsewhere?",
        ),
        "Abroad the {w} agreement holds, article {n}, with a delay of {m} days.",
    ),
    (
        (
            "Whom can I ask about that?",
            "Who is responsible for this?",
            "And who decides that in the end?",
            "Do you know somebody I could call?",
        ),
        "Call the {w} desk at extension {n}, between {m} and half past.",
    ),
    (
        (
            "And what if I got it wrong?",
            "Can that be undone afterwards?",
            "What happens if I make a mistake there?",
            "Is it bad if I did the opposite already?",
        ),
        "Nothing is lost: undo it by a {w} note within {n} days, and again after {m}.",
    ),
)
KINDS = len(_KINDS)
"""Kinds of follow-ups."""


@dataclass(frozen=True)
class Dialogue:
    """What somebody asks, turn by turn.

    Attributes:
        first: the request with which it begins.
        follow_ups: kind and words of each further question.
    """

    first: LabelledRequest
    follow_ups: tuple[tuple[int, str], ...]


class DialogueSource(Protocol):
    """Where dialogues come from."""

    def stream(self, n: int, seed: int) -> list[Dialogue]:
        """``n`` dialogues in their order of arrival."""

    def first(self, intent: int) -> int:
        """What the answer to a request of this intent must be about, at least."""

    def follow_up(
        self, first: LabelledRequest, kind: int, text: str, history: Sequence[Turn]
    ) -> LabelledRequest:
        """A further question after these turns, of which ``first`` is the first."""

    def look_alikes(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs that end in the same words after different requests."""

    def long_pairs(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs of long requests that have all in common but the question."""


class Dialogues:
    """A source of dialogues; what is right to say is the same for every seed of a stream."""

    def __init__(self, workload: SecondWorkload) -> None:
        self._workload = workload

    def stream(self, n: int, seed: int) -> list[Dialogue]:
        """``n`` dialogues of two or three turns, in their order of arrival."""
        rng = derived("dialogues", seed)
        return [self._dialogue(item, rng) for item in self._workload.stream(n, seed)]

    def _dialogue(self, first: LabelledRequest, rng: Random) -> Dialogue:
        # After a request two or three kinds of questions suggest themselves.
        usual = derived("follow-ups", first.intent).sample(range(KINDS), 3)
        kinds = rng.sample(usual, rng.choice((1, 1, 2)))
        return Dialogue(first, tuple((kind, rng.choice(_KINDS[kind][0])) for kind in kinds))

    def first(self, intent: int) -> int:
        """The intent with which a dialogue begins in which there is a request of this intent."""
        follow_up = intent - len(self._workload)
        return intent if follow_up < 0 else follow_up // KINDS

    def follow_up(
        self, first: LabelledRequest, kind: int, text: str, history: Sequence[Turn]
    ) -> LabelledRequest:
        """A further question after these turns, of which ``first`` is the first."""
        rng = derived("said after", first.intent, kind)
        values = {"n": rng.randrange(11, 999), "m": rng.randrange(11, 999), "w": made_up_word(rng)}
        intent = len(self._workload) + first.intent * KINDS + kind
        answer = _KINDS[kind][1].format(**values)
        return LabelledRequest(text, intent, first.ability, answer, tuple(history))

    def look_alikes(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs that end in the same words after requests of two intents."""
        rng = derived("look-alikes", seed)
        pairs: list[tuple[LabelledRequest, LabelledRequest]] = []
        firsts = self._workload.stream(4 * n, seed)
        while len(pairs) < n:
            a, b = rng.sample(firsts, 2)
            if self._workload.topic(a.intent) == self._workload.topic(b.intent):
                continue  # of one topic people ask much that has the same answer
            kind = rng.randrange(KINDS)
            text = rng.choice(_KINDS[kind][0])
            one, other = (self.follow_up(x, kind, text, said(x, x.answer)) for x in (a, b))
            pairs.append((one, other))
        return pairs

    def long_pairs(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs of long requests that have all in common but the question, of two intents.

        It stands at the end of every other pair and at the beginning of the rest.
        """
        rng = derived("long", seed)
        firsts = self._workload.stream(4 * n, seed)
        pairs: list[tuple[LabelledRequest, LabelledRequest]] = []
        while len(pairs) < n:
            a, b = rng.sample(firsts, 2)
            if self._workload.topic(a.intent) == self._workload.topic(b.intent):
                continue
            material = self._workload.material(rng, _LONG_WORDS)
            at_end = len(pairs) % 2 == 0
            one, other = (
                LabelledRequest(
                    f"{material} {x.text}" if at_end else f"{x.text} {material}",
                    x.intent,
                    x.ability,
                    x.answer,
                )
                for x in (a, b)
            )
            pairs.append((one, other))
        return pairs


_LONG_WORDS = 320
"""More than the embedder's window holds, and not more than an example may have."""


def said(item: LabelledRequest, answer: str) -> tuple[Turn, Turn]:
    """A request and an answer as turns."""
    return Turn("user", item.text), Turn("assistant", answer)


def past_requests(
    source: DialogueSource, dialogues: Sequence[Dialogue]
) -> Iterator[LabelledRequest]:
    """All requests of a source's dialogues in which every answer was right."""
    for dialogue in dialogues:
        item, history = dialogue.first, [*said(dialogue.first, dialogue.first.answer)]
        yield item
        for kind, text in dialogue.follow_ups:
            item = source.follow_up(dialogue.first, kind, text, history)
            history += said(item, item.answer)
            yield item
