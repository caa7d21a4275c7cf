"""Which LLM a conversation has warmed, and that it stays unless another is better by the price."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from echolm.conversation import Turn
from echolm.primitives import STORED, Request, Sampling
from echolm.router import conversations
from echolm.router.conversations import WarmConversations

FIRST = Request("a", Sampling())
NEXT = replace(FIRST, text="c", history=(Turn("user", "a"), Turn("assistant", "b")))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def warmed(price: float = 0.02) -> WarmConversations:
    warm = WarmConversations(price, Clock())
    warm.answered(FIRST, "small", "b\n")
    return warm


def test_the_next_request_of_a_conversation_finds_who_answered_it() -> None:
    warm = warmed()
    assert warm.llm_of(NEXT) == "small"
    warm.answered(NEXT, "large", "d")
    after = replace(NEXT, text="e", history=(*NEXT.turns, Turn("assistant", "d")))
    assert warm.llm_of(after) == "large"


def test_other_conversations_find_nobody() -> None:
    warm = warmed()
    assert warm.llm_of(FIRST) == ""
    assert warm.llm_of(replace(NEXT, tenant="other")) == ""
    assert warm.llm_of(replace(NEXT, system_prompt="other")) == ""
    said_otherwise = (Turn("user", "a"), Turn("assistant", "B"))
    assert warm.llm_of(replace(NEXT, history=said_otherwise)) == ""


def test_the_result_of_a_call_finds_who_made_it_though_the_call_looks_otherwise() -> None:
    called = (Turn("user", "a"), Turn("assistant", "", tool_calls="[1]"))
    request = replace(FIRST, text="42", history=called, tool_call_id="c1")
    assert warmed().llm_of(request) == "small"
    two = (*called, Turn("tool", "41", tool_call_id="c0"))
    assert warmed().llm_of(replace(request, history=two)) == "small"


def test_what_is_long_ago_or_was_answered_by_no_llm_is_warm_nowhere() -> None:
    clock = Clock()
    warm = WarmConversations(0.02, clock)
    warm.answered(FIRST, STORED, "b")
    assert warm.llm_of(NEXT) == ""
    warm.answered(FIRST, "small", "b")
    clock.now = conversations._WARM_S
    assert warm.llm_of(NEXT) == ""


def test_memory_is_bounded_and_the_oldest_goes_first(monkeypatch: object) -> None:
    warm = warmed()
    for k in range(conversations._KEPT):
        warm.answered(replace(FIRST, text=str(k)), "small", "")
    assert len(warm._known) == conversations._KEPT
    assert warm.llm_of(NEXT) == ""


def test_the_price_grows_with_what_would_be_read_anew() -> None:
    warm = warmed()
    assert warm.bonuses([FIRST], ["small", "large"]) is None
    long = replace(NEXT, system_prompt="x" * 4_990)
    warm.answered(replace(FIRST, system_prompt=long.system_prompt), "small", "b")
    bonuses = warm.bonuses([FIRST, long], ["small", "large"])
    assert bonuses is not None
    np.testing.assert_allclose(bonuses, [[0, 0], [0.02 * 1.996, 0]])
    assert warm.bonuses([long], ["large"]) is None, "an LLM that is not configured any more"


def test_without_a_price_nothing_is_remembered() -> None:
    warm = warmed(0.0)
    assert not warm._known
    assert warm.bonuses([NEXT], ["small"]) is None
