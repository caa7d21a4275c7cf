"""Request streams over the catalogue: popularity, drift, one-offs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import Literal

from echolm_lab.tasks import values
from echolm_lab.tasks.catalogue import CatalogueSize, build, derived
from echolm_lab.tasks.types import Intent, Kind, WorkItem


@dataclass(frozen=True)
class Mix:
    """What a stream consists of.

    Attributes:
        zipf: exponent of the popularity of past intents (rank^-zipf).
        one_off: share of requests without a relative in the past (live only).
        late: share of requests for intents that arrive during the stream (live only).
        lookalike: share of requests for look-alikes; None: as popular as their bases.
        requests_per_late_intent: mean requests that a late intent gets in a stream.
    """

    zipf: float = 0.8
    one_off: float = 0.04
    late: float = 0.05
    lookalike: float | None = 0.08
    requests_per_late_intent: float = 8.0


class Workload:
    """A seeded, unlimited source of requests with known right answers.

    The same ``seed`` gives the same intents on every machine; the seed of a
    stream is independent of it.
    """

    def __init__(self, seed: int = 0, size: CatalogueSize | None = None) -> None:
        self.seed = seed
        self.intents: Sequence[Intent] = build(seed, size or CatalogueSize())
        self._by_phase = {
            phase: [i for i in self.intents if i.phase == phase]
            for phase in ("past", "late", "one_off")
        }
        # Popularity ranks: a property of the catalogue, the same in every stream.
        ranked = [i for i in self._by_phase["past"] if i.lookalike_of is None]
        derived("popularity", seed).shuffle(ranked)
        self._ranked = ranked
        self._twins = {
            i.lookalike_of: i for i in self._by_phase["past"] if i.lookalike_of is not None
        }

    def stream(
        self,
        n: int,
        seed: int,
        phase: Literal["past", "live"] = "past",
        **mix: float | None,
    ) -> list[WorkItem]:
        """``n`` requests in their order of arrival.

        Args:
            phase: ``past``: intents of the past by popularity; ``live``: the
                same and late intents and one-offs.
            mix: fields of :class:`Mix` to change.
        """
        if n < 0 or phase not in ("past", "live"):
            raise ValueError(
                f"stream() needs n >= 0 and phase 'past' or 'live', got {n}, {phase!r}"
            )
        chosen = Mix(**mix)  # type: ignore[arg-type]
        rng = derived("stream", self.seed, seed, phase)
        weights = list(accumulate((rank + 1) ** -chosen.zipf for rank in range(len(self._ranked))))
        bases = [i for i in self._ranked if i.id in self._twins]
        twin_share = chosen.lookalike
        if twin_share is None:
            twin_share = len(self._twins) / (len(self._ranked) + len(self._twins))
        live = phase == "live"
        one_offs = list(self._by_phase["one_off"]) if live else []
        rng.shuffle(one_offs)
        late = self._arrivals(n, chosen, rng) if live else []
        late_due = 0.0
        one_off_number = 0
        items = []
        for position in range(n):
            arrived = [intent for at, intent in late if at <= position]
            late_due += chosen.late if live else 0.0
            draw = rng.random()
            if one_offs and draw < chosen.one_off:
                intent = one_offs[one_off_number % len(one_offs)]
                one_off_number += 1
            elif arrived and rng.random() < min(0.5, late_due / 4):
                late_due -= 1.0
                intent = rng.choice(arrived)
            elif rng.random() < twin_share and self._twins:
                intent = self._twins[rng.choice(bases).id]
            else:
                intent = rng.choices(self._ranked, cum_weights=weights)[0]
            items.append(self.item(intent, rng))
        return items

    def item(self, intent: Intent, rng: Random, wording: int | None = None) -> WorkItem:
        """One request for ``intent`` with fresh slot values, in a random or given wording."""
        text = intent.wordings[rng.randrange(len(intent.wordings)) if wording is None else wording]
        answer, slot_values = intent.answer, []
        for slot in intent.slots:
            value = values.KINDS[slot.kind](rng)
            text, answer = text.replace(slot.mark, value), answer.replace(slot.mark, value)
            slot_values.append(value)
        return self._item(intent, text, answer, slot_values)

    @staticmethod
    def _item(intent: Intent, text: str, answer: str, values: Sequence[str]) -> WorkItem:
        return WorkItem(
            text=text,
            answer=answer,
            intent_id=intent.id,
            domain=intent.domain,
            kind=_kind(intent),
            house=intent.house,
            slot_values=tuple(values),
        )

    def recognise(self, text: str) -> WorkItem | None:
        """The item of a request's text, whichever stream it came from; None for another text."""
        for template, pattern, intent in self._patterns:
            if not text.startswith(template) or (match := pattern.fullmatch(text)) is None:
                continue
            answer = intent.answer
            slot_values = [match[_group(slot.mark)] for slot in intent.slots]
            for slot, value in zip(intent.slots, slot_values, strict=True):
                answer = answer.replace(slot.mark, value)
            return self._item(intent, text, answer, slot_values)
        return None

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str], Intent]]:
        """Of each wording: what it begins with, all of it, and its intent; longest first.

        Longest first, since a slot could swallow the words that make a look-alike.
        """
        patterns = []
        for intent in self.intents:
            marks = [slot.mark for slot in intent.slots]
            split = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
            for wording in intent.wordings:
                pattern = re.escape(wording)
                for mark in marks:
                    first, *others = pattern.split(re.escape(mark))
                    # A mark that comes again stands for the same value.
                    again = f"(?P={_group(mark)})".join(others)
                    pattern = f"{first}(?P<{_group(mark)}>.+?){again}" if others else first
                patterns.append(
                    (len(wording), split.split(wording)[0], re.compile(pattern), intent)
                )
        patterns.sort(key=lambda row: -row[0])
        return [row[1:] for row in patterns]

    def _arrivals(self, n: int, mix: Mix, rng: Random) -> list[tuple[int, Intent]]:
        """Late intents of a stream of ``n`` with the position each arrives at."""
        pool = self._by_phase["late"]
        count = min(len(pool), max(1, round(n * mix.late / mix.requests_per_late_intent)))
        if not pool or mix.late <= 0:
            return []
        arriving = rng.sample(pool, count)
        return [(int(0.8 * n * k / count), intent) for k, intent in enumerate(arriving)]


def _group(mark: str) -> str:
    """The name of a slot's group in a regular expression."""
    return f"slot_{mark.strip('<>')}"


def _kind(intent: Intent) -> Kind:
    if intent.phase != "past":
        return intent.phase
    return "known" if intent.lookalike_of is None else "lookalike"
