"""The recorded past is what the shipped large LLM says."""

from __future__ import annotations

import pytest
from echolm.serving import Endpoints
from echolm_lab.policies.base import MAX_TOKENS
from echolm_lab.tasks.past import recorded_past
from triton_calls import Caller, text

pytestmark = pytest.mark.timeout(240)

SAMPLE = range(0, 3_000, 500)


def test_recorded_answers_are_the_large_llms(server: Endpoints) -> None:
    past, caller = recorded_past(3_000), Caller(server)
    same = 0
    for place in SAMPLE:
        interaction = past[place]
        answer = caller.ask(
            interaction.item.text, llm="large_llm", cache_control="no-cache", max_tokens=MAX_TOKENS
        )
        same += text(answer, "text_output") == interaction.response
    # Another CPU's rounding may tip a token now and then.
    assert same >= len(SAMPLE) - 1
