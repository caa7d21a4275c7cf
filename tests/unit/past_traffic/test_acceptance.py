from __future__ import annotations

import pytest
from echolm.past_traffic.acceptance import Acceptance, request_of
from echolm.past_traffic.record import Logged, Skipped
from echolm.settings import Limits, LLMSettings, Settings

SETTINGS = Settings(
    limits=Limits(max_input_chars=100, max_tokens=500, default_max_tokens=64),
    llms=(
        LLMSettings(name="small_llm", cost=0.1, takes_examples=True),
        LLMSettings(name="large_llm", cost=1.0, takes_examples=False),
    ),
)
LOGGED = Logged("q", "a", models=("gpt-4o", "gpt-4o-2024-08-06"), tenant="t")


def test_all_models_count_as_the_reference_unless_some_are_named() -> None:
    assert Acceptance(SETTINGS, {}, "large_llm")(LOGGED).llm == "large_llm"
    llms = {"gpt-4o-mini*": "small_llm", "gpt-4o*": "large_llm"}
    accept = Acceptance(SETTINGS, llms, "large_llm")
    assert accept(LOGGED).llm == "large_llm"
    mini = Logged("q", "a", models=("gpt-4o-mini-2024-07-18",), tenant="t")
    assert accept(mini).llm == "small_llm"
    for models in ((), ("claude",)):
        with pytest.raises(Skipped, match="other model"):
            accept(Logged("q", "a", models=models, tenant="t"))


@pytest.mark.parametrize(
    "logged",
    [
        Logged("q" * 101, "a", tenant="t"),
        Logged("q", "a", "s" * 101, tenant="t"),
        Logged("q", "a", tenant="t" * 300),
        Logged("q", "a", tenant="t", sampling={"temperature": -1}),
    ],
)
def test_what_the_service_would_refuse_is_skipped(logged: Logged) -> None:
    with pytest.raises(Skipped, match="over a limit"):
        Acceptance(SETTINGS, {}, "large_llm")(logged)


def test_an_answer_may_become_as_long_as_the_request_allowed_or_as_the_logged_one() -> None:
    def most(response: str, **sampling: int) -> int:
        logged = Logged("q", response, tenant="t", sampling=sampling)
        return request_of(logged, SETTINGS).sampling.max_tokens

    assert most("short") == 64
    assert most("long " * 100) == 201
    assert most("long " * 1_000) == 500
    assert most("long " * 100, max_tokens=10) == 10
    assert most("short", max_tokens=100_000) == 500
