"""LLMs and their judge, simulated behind the product's own LLM client.

An answer is right or wrong by a probability that is known, so that what a perfect router would do
can be told. An LLM reads what a real one would get: a rendered prompt with examples in it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from echolm.conversation import readable
from echolm.primitives import Completion, OnPiece, Piece, Sampling
from echolm.words import words_of

from echolm_lab.tasks.second_workload import LabelledRequest
from echolm_lab.tasks.second_workload_phrases import Ability

_TURN = re.compile(r"<\|user\|>(.*?)<\|assistant\|>(?:(.*?)<\|end\|>)?", re.DOTALL)
_JUDGED = re.compile(
    r"<request>\n(.*?)\n</request>.*?<answer_a>\n(.*?)\n</answer_a>.*?"
    r"<answer_b>\n(.*?)\n</answer_b>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Skill:
    """How probably an LLM's answer is right.

    Attributes:
        alone: without a right answer to the same intent among the examples, by the ability that
            the intent asks for.
        shown: with one.
        spread: deviation of the log odds from intent to intent.
    """

    alone: Mapping[Ability, float]
    shown: Mapping[Ability, float]
    spread: float = 0.0

    @classmethod
    def uniform(cls, alone: float, shown: float) -> Skill:
        """An LLM to which all intents are alike."""
        abilities: tuple[Ability, ...] = ("alone", "examples", "hard")
        return cls(dict.fromkeys(abilities, alone), dict.fromkeys(abilities, shown))

    def probability(self, item: LabelledRequest, helped: bool) -> float:
        """The probability that the answer to a request is right."""
        p = (self.shown if helped else self.alone)[item.ability]
        if not self.spread or not 0.0 < p < 1.0:
            return p
        shift = self.spread * Random(f"{item.intent}").gauss(0.0, 1.0)
        return 1.0 / (1.0 + math.exp(-shift) * (1.0 - p) / p)


@dataclass(frozen=True)
class JudgeSkill:
    """How a judge compares two answers.

    Attributes:
        wrong: probability that it names the worse of two different answers.
        tie: probability that it calls two equally good answers a tie; else either is named.
        position: probability that it names the answer shown first, whatever it says.
    """

    wrong: float = 0.05
    tie: float = 0.7
    position: float = 0.1


@dataclass
class Truth:
    """Which answers are right for which requests.

    Attributes:
        requests: by the text that a judge reads.
        following: those with a history, by the answer before them and their text.
        answers: intents by the text of a right answer.
    """

    requests: dict[str, LabelledRequest] = field(default_factory=dict)
    following: dict[tuple[str, str], LabelledRequest] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)

    def add(self, items: Sequence[LabelledRequest]) -> None:
        for item in items:
            self.requests[readable(item.transcript)] = item
            if item.history:
                self.following[item.history[-1].text, item.text] = item
            self.answers[item.answer] = item.intent

    def is_right(self, request: str, answer: str) -> bool:
        """Whether an answer, of whichever request, is right for a request."""
        return self.answers.get(answer) == self.requests[request].intent


@dataclass
class SimulatedLLM:
    """An LLM of a skill, which may change; also judges, if it is asked to.

    The same prompt gets the same answer, as at temperature 0.

    Attributes:
        copies: whether it takes over the answer of an example whose last words are the request's,
            where none of the examples is of its intent.
    """

    name: str
    skill: Skill
    truth: Truth
    seed: int
    judging: JudgeSkill = JudgeSkill()
    copies: bool = False
    prompts: int = 0

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        self.prompts += 1
        compared = _JUDGED.search(prompt)
        text = self._compare(prompt, *compared.groups()) if compared else self._read(prompt)
        if on_piece is not None:
            on_piece(Piece(text))
        return Completion(text, "stop", len(prompt) // 4, len(text) // 4 + 1)

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        return ()

    def _read(self, prompt: str) -> str:
        # Earlier turns of the conversation look like examples, of other intents.
        *examples, (request, _) = _TURN.findall(prompt)
        before = examples[-1][1] if examples else ""
        item = self.truth.following.get((before, request)) or self.truth.requests[request]
        answers: list[str] = [answer for _, answer in examples]
        if self.copies and not any(self.truth.answers.get(a) == item.intent for a in answers):
            alike: list[str] = [answer for asked, answer in examples if _alike(asked, request)]
            if alike:
                return alike[-1]
        return self.answer(item, answers)

    def answer(self, item: LabelledRequest, examples: Sequence[str]) -> str:
        """The answer to a request behind examples, of which it sees the answers."""
        helped = any(self.truth.answers.get(answer) == item.intent for answer in examples)
        # One number for all prompts of a request: what an example adds is not lost by chance.
        if self._uniform(item.transcript) < self.skill.probability(item, helped):
            return item.answer
        doubt = self._uniform(item.transcript + str(examples))
        return f"I am not sure about this, perhaps {doubt:.9f}."

    def _compare(self, prompt: str, request: str, first: str, second: str) -> str:
        dice, skill = Random(f"{self.seed} {prompt}"), self.judging
        a, b = (self.truth.is_right(request, answer) for answer in (first, second))
        if dice.random() < skill.position:
            return "[[A]]"
        if a == b:
            return "[[C]]" if dice.random() < skill.tie else dice.choice(("[[A]]", "[[B]]"))
        named = a if dice.random() >= skill.wrong else b
        return "[[A]]" if named else "[[B]]"

    def _uniform(self, request: str) -> float:
        digest = hashlib.sha1(f"{self.seed} {self.name} {request}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56


def _alike(a: str, b: str) -> bool:
    first, second = set(words_of(a)), set(words_of(b))
    return len(first & second) >= _ALIKE * len(first | second)


_ALIKE = 0.8  # share of the words of two requests from which an LLM takes one for the other

_MIXED_LARGE = Skill(
    {"alone": 0.98, "examples": 0.97, "hard": 0.93}, {"alone": 0.98, "examples": 0.97, "hard": 0.93}
)
LARGE = Skill.uniform(0.97, 0.97)
PAIRS: dict[str, tuple[Skill, Skill]] = {
    "helped": (Skill.uniform(0.2, 0.95), LARGE),
    "bad": (Skill.uniform(0.2, 0.2), LARGE),
    "equal": (LARGE, LARGE),
    "perfect": (Skill.uniform(1.0, 1.0), LARGE),
    "mixed": (
        Skill(
            {"alone": 0.96, "examples": 0.2, "hard": 0.15},
            {"alone": 0.97, "examples": 0.95, "hard": 0.25},
            spread=0.5,
        ),
        _MIXED_LARGE,
    ),
    "demo": (
        Skill(
            {"alone": 0.68, "examples": 0.03, "hard": 0.03},
            {"alone": 0.98, "examples": 0.97, "hard": 0.97},
        ),
        Skill.uniform(0.996, 0.996),
    ),
}
"""Pairs by name, the small LLM first."""
