"""Dialogues of another kind than :mod:`echolm_lab.tasks.conversations`; nothing was tuned on them.

People ask a city hall about a service, a matter and a place, and change one of the three with each
turn: "And in Tarnau?", "How long does that take?", "I also need a fishing licence". Between them
they thank, or turn to something else in whole sentences, to which the turns before say nothing. So
a dialogue has up to six turns, what a turn is about may stand several turns earlier, and the same
question may come at once or in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from random import Random

from echolm.conversation import Turn

from echolm_lab.tasks.catalogue import derived
from echolm_lab.tasks.conversations import Dialogue, said
from echolm_lab.tasks.second_workload import LabelledRequest, made_up_word

_SERVICES = (
    "a parking permit",
    "a fishing licence",
    "a birth certificate",
    "a building permit",
    "a market stall",
    "a dog tag",
    "a library card",
    "a grave plot",
    "a street concert",
    "a skip on the pavement",
    "a kindergarten place",
    "a wedding room",
    "a taxi licence",
    "a bonfire",
    "a garden allotment",
    "a change of address",
    "a beehive",
    "a school bus pass",
    "a mooring for a boat",
    "a food truck",
)
_PLACES = (
    "Tarnau",
    "Belmora",
    "Oster Quay",
    "Nivelle",
    "Krumbach",
    "Sandvik",
    "Port Ayla",
    "Lodem",
)
# How somebody asks in a whole sentence, what they say of a matter that is clear, and the answer.
_MATTERS = (
    (
        ("What does {s} cost in {p}?", "How much do I pay for {s} in {p}?"),
        ("And the fee?", "How much would that be?", "What do I have to pay?"),
        "For {s} {p} charges {n} crowns, {w} tax included.",
    ),
    (
        ("How long does it take to get {s} in {p}?", "In {p}, how long do I wait for {s}?"),
        ("How long does that take?", "When would I have it?", "Is there a long wait?"),
        "In {p} you wait {n} days for {s}, less with a {w} stamp.",
    ),
    (
        ("Where do I apply for {s} in {p}?", "Which office in {p} handles {s}?"),
        ("Where do I go for that?", "Which office is it?", "To whom do I hand it in?"),
        "Ask for {s} in room {n} of the {w} house in {p}.",
    ),
    (
        ("Which papers do I need for {s} in {p}?", "What must I bring to {p} for {s}?"),
        ("What must I bring?", "Which papers are needed?", "Do I need any documents?"),
        "Bring form {n} and a {w} card to {p} for {s}.",
    ),
    (
        ("Can {s} be cancelled in {p}?", "How do I give up {s} in {p}?"),
        ("Can I cancel it later?", "And if I do not want it any more?", "How do I get rid of it?"),
        "{p} takes {s} back within {n} days by a {w} letter.",
    ),
)
_OTHER_PLACE = ("And in {p}?", "What about {p}?", "The same for {p}, please.", "My flat is in {p}.")
_OTHER_SERVICE = ("I also need {s}.", "And {s}?", "What about {s}?", "Now the same for {s}.")
_ELSE = ("Something else: {}", "Another question. {}", "{}")
_THANKS = ("Thank you.", "All right, thanks!", "I see.", "Good to know.")
_WELCOME = "You are welcome. Is there anything else?"
_ZIPF = 1.0

_State = tuple[int, int, int]  # service, matter, place


class Errands:
    """A source of dialogues; what is right to say is the same for every seed of a stream."""

    def __init__(self) -> None:
        sizes = len(_SERVICES), len(_MATTERS), len(_PLACES)
        self._states: list[_State] = list(product(*map(range, sizes)))  # type: ignore[arg-type]
        self._numbers = {state: number for number, state in enumerate(self._states)}
        self._thanks = len(self._states)
        rng = derived("errands")
        self._weights = []
        for size in sizes:
            ranks = list(range(1, size + 1))
            rng.shuffle(ranks)
            self._weights.append([rank**-_ZIPF for rank in ranks])

    def stream(self, n: int, seed: int) -> list[Dialogue]:
        """``n`` dialogues of two to six turns, in their order of arrival."""
        rng = derived("errands of", seed)
        return [self._dialogue(rng) for _ in range(n)]

    def _draw(self, axis: int, rng: Random) -> int:
        return rng.choices(range(len(self._weights[axis])), self._weights[axis])[0]

    def _dialogue(self, rng: Random) -> Dialogue:
        state: _State = (self._draw(0, rng), self._draw(1, rng), self._draw(2, rng))
        first = self._asked(self._numbers[state], self._whole(state, rng), ())
        follow_ups = []
        for _ in range(rng.choice((1, 1, 2, 2, 3, 5))):
            change = rng.choice(("place", "matter", "matter", "service", "else", "thanks"))
            if change == "thanks":
                follow_ups.append((self._thanks, rng.choice(_THANKS)))
                continue
            state, text = self._changed(state, change, rng)
            follow_ups.append((self._numbers[state], text))
        return Dialogue(first, tuple(follow_ups))

    def _changed(self, state: _State, change: str, rng: Random) -> tuple[_State, str]:
        service, matter, place = state
        if change == "place":
            place = self._draw(2, rng)
            return (service, matter, place), rng.choice(_OTHER_PLACE).format(p=_PLACES[place])
        if change == "matter":
            matter = self._draw(1, rng)
            return (service, matter, place), rng.choice(_MATTERS[matter][1])
        if change == "service":
            service = self._draw(0, rng)
            return (service, matter, place), rng.choice(_OTHER_SERVICE).format(s=_SERVICES[service])
        state = (self._draw(0, rng), self._draw(1, rng), self._draw(2, rng))
        return state, rng.choice(_ELSE).format(self._whole(state, rng))

    def _whole(self, state: _State, rng: Random) -> str:
        service, matter, place = state
        return rng.choice(_MATTERS[matter][0]).format(s=_SERVICES[service], p=_PLACES[place])

    def _asked(self, intent: int, text: str, history: Sequence[Turn]) -> LabelledRequest:
        answer = _WELCOME
        if intent != self._thanks:
            service, matter, place = self._states[intent]
            rng = derived("errand", intent)
            values = {"n": rng.randrange(11, 999), "w": made_up_word(rng)}
            values |= {"s": _SERVICES[service], "p": _PLACES[place]}
            answer = _MATTERS[matter][2].format(**values)
        return LabelledRequest(text, intent, "examples", answer, tuple(history))

    def first(self, intent: int) -> int:
        """What an answer must have in common with a request, which is all."""
        return intent

    def follow_up(
        self, first: LabelledRequest, kind: int, text: str, history: Sequence[Turn]
    ) -> LabelledRequest:
        """A further turn, of which ``kind`` says what is then asked."""
        return self._asked(kind, text, history)

    def look_alikes(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs that end in the same words after requests about two services."""
        rng = derived("errands that look alike", seed)
        pairs: list[tuple[LabelledRequest, LabelledRequest]] = []
        while len(pairs) < n:
            one, other = (self._dialogue(rng).first for _ in range(2))
            a, b = self._states[one.intent], self._states[other.intent]
            if a[0] == b[0]:
                continue
            change = rng.choice(("place", "matter"))
            after, text = self._changed(a, change, rng)
            same = (b[0], b[1], after[2]) if change == "place" else (b[0], after[1], b[2])
            both = ((one, after), (other, same))
            asked = [self._asked(self._numbers[s], text, said(x, x.answer)) for x, s in both]
            pairs.append((asked[0], asked[1]))
        return pairs

    def long_pairs(self, n: int, seed: int) -> list[tuple[LabelledRequest, LabelledRequest]]:
        """Pairs of long requests that have all in common but the question, at either end."""
        rng = derived("long errands", seed)
        pairs: list[tuple[LabelledRequest, LabelledRequest]] = []
        while len(pairs) < n:
            one, other = (self._dialogue(rng).first for _ in range(2))
            if self._states[one.intent][0] == self._states[other.intent][0]:
                continue
            told: list[str] = []
            while sum(len(line.split()) for line in told) < _LONG_WORDS:
                told.append(self._asked(rng.randrange(len(self._states)), "", ()).answer)
            material, at_end = " ".join(told), len(pairs) % 2 == 0
            texts = (
                f"{material} {x.text}" if at_end else f"{x.text} {material}" for x in (one, other)
            )
            pairs.append(
                tuple(  # type: ignore[arg-type]
                    self._asked(x.intent, text, ())
                    for x, text in zip((one, other), texts, strict=True)
                )
            )
        return pairs


_LONG_WORDS = 320
"""More than the embedder's window holds, and not more than an example may have."""
