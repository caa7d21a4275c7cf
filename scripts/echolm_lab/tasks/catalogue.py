"""The fixed catalogue of intents, and freshly invented intents for training."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from echolm_lab.tasks import values
from echolm_lab.tasks.domain import Domain
from echolm_lab.tasks.phrases import FLAGS
from echolm_lab.tasks.shell import SHELL
from echolm_lab.tasks.sql import SQL
from echolm_lab.tasks.support import SUPPORT
from echolm_lab.tasks.tools import TOOLS
from echolm_lab.tasks.types import Draft, Intent, Phase, Subject

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (SHELL, SQL, TOOLS, SUPPORT)}
"""The workload's domains, one module each; the order decides the ids of the intents."""


@dataclass(frozen=True)
class CatalogueSize:
    """How many intents a catalogue has, per domain.

    Attributes:
        past: intents asked from the start, bases of look-alikes among them.
        lookalikes: further intents of the past, each the twin of another.
        late: intents that appear while a live stream runs.
        one_off: intents that only live streams have, once in a while.
        seen_by_small: share of past and late intents that the small LLM met
            in training; it never met a one-off.
    """

    past: int = 130
    lookalikes: int = 14
    late: int = 16
    one_off: int = 36
    seen_by_small: float = 0.42


def derived(*parts: object) -> Random:
    """A random generator for a named purpose, the same on every machine."""
    return Random(zlib.crc32(repr(parts).encode()) | len(parts) << 32)


def build(seed: int, size: CatalogueSize) -> tuple[Intent, ...]:
    """All intents of the catalogue; same seed and size, same intents.

    Within a domain no two intents share topic and object, look-alikes and
    their bases aside, and topics repeat as little as possible: so that
    sentence embeddings can distinguish the intents.
    """
    intents: list[Intent] = []
    for domain in DOMAINS.values():
        intents.extend(_build_domain(domain, seed, size, first_id=len(intents)))
    return tuple(intents)


def _build_domain(domain: Domain, seed: int, size: CatalogueSize, first_id: int) -> list[Intent]:
    rng = derived("catalogue", seed, domain.name)
    total = size.past + size.late + size.one_off
    subjects = _subjects(domain, rng, total)
    counts: dict[Phase, int] = {"past": size.past, "late": size.late, "one_off": size.one_off}
    phases = [phase for phase, count in counts.items() for _ in range(count)]
    flags = [rng.randrange(len(FLAGS)) if n < size.lookalikes else None for n in range(total)]
    intents: list[Intent] = []

    def place(draft: Draft, phase: Phase, lookalike_of: int | None, seen: bool) -> None:
        intents.append(
            Intent(
                id=first_id + len(intents),
                domain=domain.name,
                phase=phase,
                lookalike_of=lookalike_of,
                seen_by_small=seen,
                subject=draft.subject,
                slots=draft.slots,
                wordings=draft.wordings,
                answer=draft.answer,
                house=draft.house,
            )
        )

    for subject, phase, flag in zip(subjects, phases, flags, strict=True):
        draft = domain.draft(rng, subject, flag)
        # A look-alike pair shares its subject, so both sides are seen, or neither is.
        seen = phase != "one_off" and rng.random() < size.seen_by_small
        place(draft, phase, None, seen)
        if flag is not None:
            place(domain.lookalike(rng, draft), phase, intents[-1].id, seen)
    return intents


def _subjects(domain: Domain, rng: Random, count: int) -> list[Subject]:
    """``count`` subjects that differ in topic or object, spread over both."""
    topics: list[str] = []
    while len(topics) < count:
        topics.extend(rng.sample(domain.topics, len(domain.topics)))
    taken: set[tuple[str, str]] = set()
    uses: dict[tuple[str, str], int] = {}
    subjects = []
    for topic in topics[:count]:
        free = [t[0] for t in domain.things if (topic, t[0]) not in taken]
        thing = rng.choice(free)
        taken.add((topic, thing))
        # Prefer verbs that this object and this topic do not have yet.
        verbs = [a[0] for a in domain.actions]
        rng.shuffle(verbs)
        action = min(verbs, key=lambda v: uses.get((topic, v), 0) * 2 + uses.get((thing, v), 0))
        uses[(topic, action)] = uses.get((topic, action), 0) + 1
        uses[(thing, action)] = uses.get((thing, action), 0) + 1
        subjects.append(Subject(topic, thing, action))
    rng.shuffle(subjects)
    return subjects


def invent(rng: Random, forbidden: frozenset[tuple[str, str, str]]) -> Iterator[Draft]:
    """Endless new intents of the same grammars, near relatives next to each other.

    For training models to imitate examples. Half of the topics are made-up
    words; relatives share one or two of topic, object and action.
    No draft has a (domain, topic, object) of ``forbidden``.
    """
    names = list(DOMAINS)
    while True:
        domain = DOMAINS[rng.choice(names)]
        base = domain.subject(rng)
        if rng.random() < 0.5:
            base = replace(base, topic=f"{values.word(rng)}-{values.syllable(rng)}")
        family = [base]
        for _ in range(rng.choice((0, 0, 1, 2))):
            other = domain.subject(rng)
            kept = rng.choice(
                (("topic",), ("topic", "thing"), ("topic", "action"), ("thing", "action"))
            )
            other = replace(other, **{name: getattr(base, name) for name in kept})
            if other not in family:
                family.append(other)
        for subject in family:
            if (domain.name, subject.topic, subject.thing) in forbidden:
                continue
            flag = rng.randrange(len(FLAGS)) if rng.random() < 0.25 else None
            draft = domain.draft(rng, subject, flag)
            yield draft
            if flag is not None and rng.random() < 0.8:
                yield domain.lookalike(rng, draft)
