"""Guessing ahead from the prompt changes how many steps an answer takes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from echolm.engines.base import GenerationChunk, GenerationRequest, SamplingParams
from echolm.engines.openvino import OpenVINOOptions, OpenVINOStepper
from echolm.errors import ConfigurationError
from echolm.workload import Workload
from echolm.workload.prompt import render

SMALL_LLM = Path(__file__).resolve().parents[2] / "model_repository/local/small_llm/1/openvino"


def prompts() -> list[str]:
    """Requests behind an example of their intent."""
    stream = Workload(seed=0).stream(400, seed=1, phase="past")
    first: dict[str, str] = {}
    found = []
    for item in stream:
        if item.intent_id in first:
            found.append(first[item.intent_id] + render(item.text))
        first[item.intent_id] = render(item.text) + item.answer + "<|end|>"
    return found[:6]


def answers(options: OpenVINOOptions, sampling: SamplingParams) -> tuple[list[str], int]:
    """The texts, and how many steps they took."""
    stepper = OpenVINOStepper(SMALL_LLM, options)
    asked = prompts()
    for number, prompt in enumerate(asked):
        stepper.add(GenerationRequest(str(number), prompt, sampling, streaming=False))
    texts, steps = {}, 0
    while stepper.busy:
        steps += 1
        for request_id, event in stepper.step():
            assert isinstance(event, GenerationChunk)
            assert event.is_last
            texts[request_id] = event.text
    return [texts[str(number)] for number in range(len(asked))], steps


def test_greedy_answers_stay_the_same_and_take_fewer_steps() -> None:
    sampling = SamplingParams(max_tokens=160)
    plain, many = answers(OpenVINOOptions(num_kv_blocks=512), sampling)
    guessed, few = answers(OpenVINOOptions(num_kv_blocks=512, prompt_lookup=5), sampling)
    assert guessed == plain
    assert few < many / 2


def test_a_seed_gives_the_same_answers_again() -> None:
    options = OpenVINOOptions(num_kv_blocks=512, prompt_lookup=5)
    sampling = SamplingParams(max_tokens=60, temperature=1.5, seed=7)
    assert answers(options, sampling) == answers(options, sampling)


def test_a_negative_number_of_guesses_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"prompt_lookup: expected at least 0, got -1"):
        OpenVINOOptions(prompt_lookup=-1)
