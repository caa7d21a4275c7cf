"""Value objects of the workload: intents, the requests drawn from them, and past answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from echolm_lab.tasks import grader

Phase = Literal["past", "late", "one_off"]
Kind = Literal["known", "late", "one_off", "lookalike"]
CorruptionKind = Literal["other_intent", "truncated", "changed_values"]


@dataclass(frozen=True)
class Slot:
    """An open-vocabulary blank of an intent.

    Attributes:
        mark: what stands for it in templates, such as ``<a>``.
        kind: a key of :data:`echolm_lab.tasks.values.KINDS`.
    """

    mark: str
    kind: str


@dataclass(frozen=True)
class Subject:
    """What an intent is about; two intents of a catalogue never share all three."""

    topic: str
    thing: str
    action: str


@dataclass(frozen=True)
class Draft:
    """An intent before it gets an id and a place in a catalogue.

    Attributes:
        wordings: request templates, all asking for the same.
        skeleton: answer template whose house conventions are ``[[0]]``,
            ``[[1]]``, ... and whose slots are their marks.
        house: the conventions, in the order of their numbers. Opaque: nobody
            can guess them without having seen an answer of this intent.
        house_styles: how each of them was made (see ``values.STYLES``).
        flag: index of the look-alike flag in ``phrases.FLAGS``, or None.
    """

    domain: str
    subject: Subject
    slots: tuple[Slot, ...]
    wordings: tuple[str, ...]
    skeleton: str
    house: tuple[str, ...]
    house_styles: tuple[str, ...]
    flag: int | None = None

    @property
    def answer(self) -> str:
        """The answer template: conventions filled in, slots still marks."""
        text = self.skeleton
        for number, value in enumerate(self.house):
            text = text.replace(f"[[{number}]]", value)
        return text


@dataclass(frozen=True)
class Intent:
    """One kind of request, with its wordings and its one right answer.

    Attributes:
        phase: ``past``: asked from the start; ``late``: appears while the live
            stream runs; ``one_off``: appears in live streams only, seldom, so
            that it has no relative in the past.
        lookalike_of: id of the intent from which this one differs by one flag
            word, with another right answer; None for most.
        seen_by_small: whether the small LLM met it in training, in any form.
    """

    id: int
    domain: str
    phase: Phase
    lookalike_of: int | None
    seen_by_small: bool
    subject: Subject
    slots: tuple[Slot, ...]
    wordings: tuple[str, ...]
    answer: str
    house: tuple[str, ...]


class Item(Protocol):
    """One request that is asked of every policy."""

    @property
    def text(self) -> str:
        """The request."""

    @property
    def kind(self) -> str:
        """What makes it special, by which scores are compared."""

    def score(self, response: str) -> float:
        """What a response is worth as an answer, 0..1."""


@dataclass(frozen=True)
class WorkItem:
    """One request with its right answer.

    Attributes:
        text: the request.
        answer: the only answer that scores 1.
        kind: ``known`` for intents of the past, else what makes it special.
        house: the conventions the answer must hold (for the grader).
        slot_values: the slot values the answer must hold (for the grader).
    """

    text: str
    answer: str
    intent_id: int
    domain: str
    kind: Kind
    house: tuple[str, ...]
    slot_values: tuple[str, ...]

    def score(self, response: str) -> float:
        """The exact grade of a response."""
        return grader.grade(self, response)


@dataclass(frozen=True)
class PastInteraction:
    """A past request and an answer to it, usually the large LLM's.

    Attributes:
        corruption: how the answer was corrupted; None: it is as it was given.
    """

    item: WorkItem
    response: str
    corruption: CorruptionKind | None = None
