"""What replaying past requests costs, before and while it is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echolm.conversation import turns_of
from echolm.judges.llm import DEFAULT_PROMPT
from echolm.llm.chat_template import few_shot
from echolm.llm.endpoint import LLMEndpoint
from echolm.llm.tokens import TokenCounter
from echolm.past_traffic.record import Logged
from echolm.settings import Settings

_COUNTED = 200  # requests of a sample whose tokens are counted; the others are like them


@dataclass(frozen=True)
class Price:
    """Money for a million tokens that an LLM reads and writes."""

    read: float
    written: float

    def of(self, read: float, written: float) -> float:
        """Money for so many tokens."""
        return (read * self.read + written * self.written) / 1e6


@dataclass
class Tokens:
    """Answers of one LLM, and the tokens that it read and wrote for them."""

    answers: float = 0
    read: float = 0.0
    written: float = 0.0

    def add(self, read: float, written: float, answers: float = 1) -> None:
        """Count answers."""
        self.answers += answers
        self.read += read
        self.written += written


@dataclass
class Budget:
    """What may be spent, in money where there are prices, else in tokens.

    Attributes:
        limit: the most that may be spent; None: no limit.
        prices: of each LLM that works; empty: tokens count.
        spent: by whoever worked: an LLM, or ``judge``.
        reserved: what steps under way may cost.
    """

    limit: float | None
    prices: Mapping[str, Price]
    judge_llm: str
    spent: dict[str, Tokens] = field(default_factory=dict)
    reserved: float = field(default=0.0, init=False)

    def cost(self, who: str, read: float, written: float) -> float:
        """What these tokens cost, in the budget's unit."""
        if not self.prices:
            return read + written
        price = self.prices.get(self.judge_llm if who == "judge" else who)
        return price.of(read, written) if price else 0.0

    @property
    def total(self) -> float:
        """What is spent, in the budget's unit."""
        return sum(self.cost(who, t.read, t.written) for who, t in self.spent.items())

    def reserve(self, most: float) -> bool:
        """Set aside what a step costs at most; False if the budget does not have it."""
        if self.limit is not None and self.total + self.reserved + most > self.limit:
            return False
        self.reserved += most
        return True

    def release(self, most: float) -> None:
        """What was set aside is spent, or will not be."""
        self.reserved -= most

    def pay(self, who: str, read: float, written: float) -> None:
        """Count an answer of an LLM, or a judgement."""
        self.spent.setdefault(who, Tokens()).add(read, written)


def judging_tokens(
    settings: Settings, counter: TokenCounter, request: str, answers: Sequence[int]
) -> tuple[int, int]:
    """Most tokens that the judge reads and writes to compare answers of so many tokens."""
    if settings.judging.kind != "llm":
        return 0, 0
    prompt = counter.count(DEFAULT_PROMPT) + counter.count(request) + sum(answers)
    return 2 * prompt, 2 * settings.judging.max_judgement_tokens


def expected_cost(
    sample: Sequence[Logged],
    settings: Settings,
    endpoints: Mapping[str, LLMEndpoint],
    candidates: Sequence[str],
) -> dict[str, Tokens]:
    """Answers and tokens by LLM, and under ``judge``, if answers are as long as the logged ones.

    Args:
        sample: what will be replayed.
        candidates: names of the LLMs that will answer.
    """
    counted = sample[:_COUNTED]
    scale = len(sample) / max(1, len(counted))
    costs: dict[str, Tokens] = {}
    judge = endpoints[settings.judge_llm.name]
    if not counted:
        return costs
    for name in candidates:
        endpoint, total = endpoints[name], costs.setdefault(name, Tokens())
        count = endpoint.tokens.count
        pairs = [(count(one.request), count(one.response)) for one in counted]
        usual = sum(map(sum, pairs)) / len(pairs)
        retrieval = settings.retrieval
        examples = min(retrieval.max_example_tokens, retrieval.num_examples * usual)
        for one, (_, answer) in zip(counted, pairs, strict=True):
            turns = few_shot(turns_of(one.request), system=one.system_prompt)
            read = count(endpoint.template.render(turns))
            ways = [read] + ([read + examples] if endpoint.settings.takes_examples else [])
            for way in ways:
                total.add(scale * way, scale * answer, scale)
                answers = [judge.tokens.count(one.response)] * 2
                judged = judging_tokens(settings, judge.tokens, one.request, answers)
                costs.setdefault("judge", Tokens()).add(scale * judged[0], scale * judged[1], scale)
    return costs
