"""What a domain is, and how intents are drafted from its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from echolm_lab.tasks import values
from echolm_lab.tasks.phrases import FLAGS, FRAMES, SLOT_PHRASES
from echolm_lab.tasks.types import Draft, Slot, Subject

MARKS = ("<a>", "<b>", "<c>")
WORDINGS = 7


class House:
    """Hands out opaque conventions while an answer is written.

    ``house("code")`` makes a new convention in a style of ``values.STYLES`` and
    returns its placeholder.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.values: list[str] = []
        self.styles: list[str] = []

    def __call__(self, style: str) -> str:
        self.values.append(_unlike(self._rng, style, self.values))
        self.styles.append(style)
        return f"[[{len(self.values) - 1}]]"

    def compact(self, skeleton: str) -> str:
        """Drops the conventions that ``skeleton`` does not use and renumbers the others."""
        used = [n for n in range(len(self.values)) if f"[[{n}]]" in skeleton]
        for new, old in enumerate(used):
            skeleton = skeleton.replace(f"[[{old}]]", f"[[{new}]]")
        self.values = [self.values[n] for n in used]
        self.styles = [self.styles[n] for n in used]
        return skeleton


def _unlike(rng: Random, style: str, taken: list[str]) -> str:
    """A value of ``style`` that neither holds nor is held by one of ``taken``."""
    while True:
        value = values.STYLES[style](rng)
        if not any(value in other or other in value for other in taken):
            return value


class AnswerWriter(Protocol):
    """Writes an answer skeleton for a subject; the heart of a domain."""

    def __call__(
        self, rng: Random, subject: Subject, slots: tuple[Slot, ...], house: House
    ) -> str: ...


@dataclass(frozen=True)
class Domain:
    """A domain: its vocabulary and its way to write answers.

    Attributes:
        topics: what the intents are about.
        things: objects of a request; the first of each tuple names it, the
            others mean the same.
        actions: verbs; the first of each tuple names it, the others mean the same.
        phrase: how verb, topic and object form a request; ``{act}``,
            ``{topic}`` and ``{thing}`` are filled in.
        slot_sets: combinations of slot kinds that occur together.
        frames: how a request may open.
    """

    name: str
    topics: tuple[str, ...]
    things: tuple[tuple[str, ...], ...]
    actions: tuple[tuple[str, ...], ...]
    phrase: tuple[str, ...]
    slot_sets: tuple[tuple[str, ...], ...]
    write: AnswerWriter
    frames: tuple[str, ...] = FRAMES

    def subject(self, rng: Random) -> Subject:
        """A random subject of this domain's own vocabulary."""
        return Subject(
            rng.choice(self.topics), rng.choice(self.things)[0], rng.choice(self.actions)[0]
        )

    def draft(self, rng: Random, subject: Subject, flag: int | None = None) -> Draft:
        """Invents wordings and an answer for ``subject``.

        Args:
            subject: topics outside the vocabulary are allowed.
            flag: index in ``phrases.FLAGS``: the wordings carry its first side,
                and :func:`lookalike` makes the other.
        """
        kinds = rng.choice(self.slot_sets)
        slots = tuple(Slot(mark, kind) for mark, kind in zip(MARKS, kinds, strict=False))
        house = House(rng)
        skeleton = house.compact(self.write(rng, subject, slots, house))
        return Draft(
            domain=self.name,
            subject=subject,
            slots=slots,
            wordings=self._wordings(rng, subject, slots, None if flag is None else FLAGS[flag][0]),
            skeleton=skeleton,
            house=tuple(house.values),
            house_styles=tuple(house.styles),
            flag=flag,
        )

    def lookalike(self, rng: Random, base: Draft) -> Draft:
        """The twin of ``base`` whose flag is turned: same words, another answer."""
        if base.flag is None:
            raise ValueError("lookalike() needs a draft with a flag, got one without")
        fresh = list(base.house)
        count = max(2, round(len(fresh) * 0.6))
        for number in rng.sample(range(len(fresh)), min(count, len(fresh))):
            fresh[number] = _unlike(rng, base.house_styles[number], [*base.house, *fresh])
        wordings = self._wordings(rng, base.subject, base.slots, FLAGS[base.flag][1])
        return replace(base, wordings=wordings, house=tuple(fresh))

    def _wordings(
        self, rng: Random, subject: Subject, slots: tuple[Slot, ...], flag: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        """``WORDINGS`` different request templates."""
        things = next((t for t in self.things if t[0] == subject.thing), (subject.thing,))
        actions = next((a for a in self.actions if a[0] == subject.action), (subject.action,))
        wordings: dict[str, None] = {}
        frames: list[str] = []
        while len(wordings) < WORDINGS:
            if not frames:
                frames = rng.sample(self.frames, len(self.frames))
            core = rng.choice(self.phrase).format(
                act=rng.choice(actions), topic=subject.topic, thing=rng.choice(things)
            )
            details = [rng.choice(SLOT_PHRASES[slot.kind]).format(slot.mark) for slot in slots]
            rng.shuffle(details)
            if flag is not None:
                details.insert(rng.choice((0, len(details))), rng.choice(flag))
            text = frames.pop().format(do=" ".join([core, *details]))
            wordings.setdefault(text)
        return tuple(wordings)
