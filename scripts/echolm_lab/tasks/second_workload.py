"""A workload unlike the demo's: callers of other trades ask in free prose.

Nothing in EchoLM was tuned on it. About 290 intents of six fields; some every LLM can answer, some
need to have been seen, and with some nothing helps a small one. Callers tell their situation along
with their question, so that two requests of one intent share few words. Popularity falls by
Zipf's law, rises in bursts, and a part of the intents comes up only in the course of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from echolm.conversation import Turn, transcript

from echolm_lab.tasks.catalogue import derived
from echolm_lab.tasks.second_workload_phrases import (
    CALLERS,
    CLOSINGS,
    FIELDS,
    OPENINGS,
    OPENINGS_OF_CALLERS,
    Ability,
    Aspect,
    Field,
)

_LEAST_WORDINGS, _WORDINGS = 40, 6_000
"""Wordings of each intent, and of all by their popularity."""
_ASPECTS = 2  # kinds of questions that are asked about one topic
_SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lor", "mi", "na", "pol", "ra", "su", "ti", "ven", "zo")


@dataclass(frozen=True)
class LabelledRequest:
    """A request of a known intent.

    Attributes:
        intent: requests of one intent are served by each other's answers, and by no others.
        answer: a right answer; there are several.
        history: turns before the text.
    """

    text: str
    intent: int
    ability: Ability
    answer: str
    history: tuple[Turn, ...] = ()

    @property
    def transcript(self) -> str:
        """The request with what came before it."""
        return transcript((*self.history, Turn("user", self.text)))


@dataclass(frozen=True)
class Popularity:
    """What is asked how often.

    Attributes:
        zipf: exponent: the intent of rank r is asked in proportion to r^-zipf.
        late: share of the intents that come up in the course of a stream.
        burst_every: requests between the beginnings of two bursts, on average.
        burst_length, burst_share: requests that a burst lasts, and its share of them.
    """

    zipf: float = 0.9
    late: float = 0.2
    burst_every: int = 500
    burst_length: int = 100
    burst_share: float = 0.3


@dataclass(frozen=True)
class _Intent:
    field: Field
    topic: tuple[str, ...]
    caller: tuple[str, ...]
    aspect: Aspect
    ability: Ability
    told: tuple[str, ...]


class SecondWorkload:
    """A source of requests; the intents are the same for every seed of a stream.

    Args:
        clear: share of the requests that say for whom they are, by which intents about the same
            topic can be told apart. With 0 the most similar past request is of another intent for
            one request in seven, as in Banking77.
    """

    def __init__(
        self, seed: int = 0, popularity: Popularity | None = None, clear: float = 0.95
    ) -> None:
        self._seed, self._clear = seed, clear
        self._popularity = popularity or Popularity()
        rng = derived("second workload", seed)
        self._intents = [
            _intent(field, topic, aspect, rng)
            for field in FIELDS
            for topic in field.topics
            for aspect in rng.sample(field.aspects, _ASPECTS)
        ]
        ranks = list(range(1, len(self._intents) + 1))
        rng.shuffle(ranks)
        self._weights = [rank**-self._popularity.zipf for rank in ranks]

    def __len__(self) -> int:
        """Number of intents."""
        return len(self._intents)

    def topic(self, intent: int) -> str:
        """What an intent is about; several are about the same."""
        return self._intents[intent].topic[0]

    def material(self, rng: Random, words: int) -> str:
        """Prose of about so many words that asks nothing."""
        told: list[str] = []
        while sum(len(line.split()) for line in told) < words:
            intent = rng.choice(self._intents)
            told += [*intent.told, *intent.field.situations[:1]]
        return " ".join(told)

    def stream(self, n: int, seed: int) -> list[LabelledRequest]:
        """``n`` requests in their order of arrival."""
        p, rng = self._popularity, derived("second stream", self._seed, seed)
        arrival = [n * rng.random() if rng.random() < p.late else 0.0 for _ in self._intents]
        total = sum(self._weights)
        burst, burst_until = 0, -1
        weights: list[float] = []
        due = 0.0
        items = []
        for position in range(n):
            if position >= due:  # the next intent has come up
                arrived = (
                    w * (at <= position) for w, at in zip(self._weights, arrival, strict=True)
                )
                weights = list(accumulate(arrived))
                due = min([at for at in arrival if at > position], default=float(n))
            drawn = rng.choices(range(len(self)), cum_weights=weights)[0]
            if rng.random() < 1.0 / p.burst_every:
                burst, burst_until = rng.choice(range(len(self))), position + p.burst_length
            if position < burst_until and arrival[burst] <= position:
                drawn = burst if rng.random() < p.burst_share else drawn
            wordings = _LEAST_WORDINGS + int(_WORDINGS * self._weights[drawn] / total)
            items.append(self._request(drawn, rng.randrange(wordings)))
        return items

    def _request(self, number: int, wording: int) -> LabelledRequest:
        intent, rng = self._intents[number], derived("wording", self._seed, number, wording)
        text = rng.choice(intent.aspect.asked).format(rng.choice(intent.topic))
        if rng.random() < self._clear:
            caller = rng.choice(OPENINGS_OF_CALLERS).format(rng.choice(intent.caller))
            text = f"{caller} {text}" if rng.random() < 0.5 else f"{text} {caller}"
        for told in rng.sample(intent.field.situations, rng.choice((0, 0, 1))):
            text = f"{told} {text}" if rng.random() < 0.7 else f"{text} {told}"
        if rng.random() < 0.2:
            text = f"{rng.choice(OPENINGS)} {text}"
        if rng.random() < 0.15:
            text = f"{text} {rng.choice(CLOSINGS)}"
        for _ in range(rng.choice((0, 0, 1))):
            text = _mistyped(text, rng)
        text = text[0].upper() + text[1:]
        told_first, *rest = intent.told
        rng.shuffle(rest)
        return LabelledRequest(text, number, intent.ability, " ".join([told_first, *rest]))


def _intent(field: Field, topic: tuple[str, ...], aspect: Aspect, rng: Random) -> _Intent:
    """An intent; one in seven needs something else than most of its kind."""
    abilities: tuple[Ability, ...] = ("alone", "examples", "hard")
    ability = rng.choice(abilities) if rng.random() < 1 / 7 else aspect.ability
    count = min(len(field.told), rng.randint(*field.sentences))
    told = tuple(_filled(line, topic[0], rng) for line in rng.sample(field.told, count))
    return _Intent(field, topic, rng.choice(CALLERS), aspect, ability, told)


def made_up_word(rng: Random) -> str:
    """A word that hardly anything else holds."""
    return "".join(rng.choices(_SYLLABLES, k=3))


def _filled(line: str, topic: str, rng: Random) -> str:
    values: dict[str, Callable[[], str]] = {
        "{}": lambda: topic,
        "{n}": lambda: str(rng.randrange(11, 999)),
        "{w}": lambda: made_up_word(rng),
    }
    for mark, value in values.items():
        line = line.replace(mark, value())
    return line[0].upper() + line[1:]


def _mistyped(text: str, rng: Random) -> str:
    """The text with two letters of a word swapped."""
    at = rng.randrange(1, len(text) - 2)
    swapped = text[at + 1] + text[at]
    return text[:at] + swapped + text[at + 2 :] if swapped.isalpha() else text
