"""The simulated LLMs read conversations, and the measure can fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from echolm.conversation import Turn
from echolm.primitives import Sampling
from echolm_lab.experiments.simulated_llms import SimulatedLLM, Skill, Truth
from echolm_lab.tasks.second_workload import LabelledRequest

HISTORY = (Turn("user", "rain in Rome?"), Turn("assistant", "no"))
ASKED = LabelledRequest("and in May?", 7, "examples", "It rains on the third.", HISTORY)
OTHER = replace(
    ASKED, intent=8, answer="Tea is best then.", history=(HISTORY[0], Turn("assistant", "tea"))
)
CONVERSATION = "<|user|>rain in Rome?<|assistant|>no<|end|><|user|>and in May?<|assistant|>"


def ask(prompt: str, copies: bool, known: float = 0.0) -> str:
    truth = Truth()
    truth.add([ASKED, OTHER])
    llm = SimulatedLLM("small", Skill.uniform(known, 1.0), truth, seed=1, copies=copies)
    return asyncio.run(llm.generate("id", prompt, Sampling(), None)).text


def test_what_was_said_before_tells_what_is_asked() -> None:
    assert ask(CONVERSATION, copies=False, known=1.0) == ASKED.answer
    other = CONVERSATION.replace(">no<", ">tea<")
    assert ask(other, copies=False, known=1.0) == OTHER.answer


def test_an_llm_that_copies_is_misled_by_an_example_that_ends_alike() -> None:
    example = f"<|user|>and in May?<|assistant|>{OTHER.answer}<|end|>"
    assert ask(example + CONVERSATION, copies=True) == OTHER.answer
    assert ask(example + CONVERSATION, copies=False) not in (OTHER.answer, ASKED.answer)
    right = f"<|user|>and in May?<|assistant|>{ASKED.answer}<|end|>"
    assert ask(example + right + CONVERSATION, copies=True) == ASKED.answer
