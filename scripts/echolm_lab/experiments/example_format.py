"""How examples stand in a prompt: what a real LLM makes of each form.

Requests for a shell command, with the nearest other requests and their commands as examples. Of
the same requests one half of the trials begin a conversation, and in the other two earlier requests
of the same caller come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import openvino_genai as genai
from echolm.conversation import Turn
from echolm.errors import ConfigurationError
from echolm.llm.chat_template import ChatTemplate, few_shot, load_chat_template
from echolm.llm.examples_block import examples_block
from numpy.typing import NDArray

SYSTEM = "Translate the request into one bash command. Answer with the command alone."
EXAMPLES = 3
MAX_TOKENS = 64

Pair = tuple[str, str]
"""A request and its answer."""

Key = tuple[str, int, str]
"""An answer's task, the number of its request, and the form of its prompt."""


def _turns(turns: Sequence[Turn], examples: Sequence[Pair]) -> list[Turn]:
    return few_shot(turns, examples, SYSTEM)


def _block(turns: Sequence[Turn], examples: Sequence[Pair]) -> list[Turn]:
    *before, last = turns
    text = f"{examples_block(examples)}\n\n{last.text}"
    return few_shot([*before, replace(last, text=text)], (), SYSTEM)


def _system(turns: Sequence[Turn], examples: Sequence[Pair]) -> list[Turn]:
    return few_shot(turns, (), f"{SYSTEM}\n\n{examples_block(examples)}")


def _none(turns: Sequence[Turn], examples: Sequence[Pair]) -> list[Turn]:
    return few_shot(turns, (), SYSTEM)


FORMS: dict[str, Callable[[Sequence[Turn], Sequence[Pair]], list[Turn]]] = {
    "turns": _turns,
    "block": _block,
    "system": _system,
    "none": _none,
}
"""Ways to show examples, by name: the two of ``examples.format``, a block in the system prompt, and
no examples."""


@dataclass(frozen=True)
class Trial:
    """A request with its history and its examples, the nearest last."""

    turns: tuple[Turn, ...]
    examples: tuple[Pair, ...]
    reference: str


def trials(
    pairs: Sequence[Pair],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    count: int,
    earlier: int,
    seed: int,
) -> list[Trial]:
    """Requests drawn from pairs, each behind ``earlier`` others that have been answered.

    What is asked is neither among the examples nor in the history, in the same words least of all.
    """
    rng = Random(f"example format {seed}")
    asked = rng.sample(range(len(pairs)), count)
    vectors = embed([request for request, _ in pairs])
    found = []
    for k in asked:
        request, reference = pairs[k]

        def same(pair: Pair, asked: str = request.lower()) -> bool:
            return pair[0].lower() == asked

        near = np.argsort(-(vectors @ vectors[k]), kind="stable").tolist()
        others = [pairs[n] for n in near[: 20 * EXAMPLES] if not same(pairs[n])]
        history: list[Turn] = []
        for said, answer in rng.sample([p for p in pairs if not same(p)], earlier):
            history += [Turn("user", said), Turn("assistant", answer)]
        turns = (*history, Turn("user", request))
        found.append(Trial(turns, tuple(reversed(others[:EXAMPLES])), reference))
    return found


def kept_scores(file: Path, made_by: dict[str, Any]) -> dict[Key, float]:
    """The scores of a file by task, number and form; a new one gets what answers are made by.

    Raises:
        ConfigurationError: its answers are another LLM's, or to other requests.
    """
    if not file.is_file():
        file.write_text(f"{json.dumps(made_by)}\n")
    first, *rows = map(json.loads, file.read_text().splitlines() or ["{}"])
    if first != made_by:
        mend = "name another file with --output"
        raise ConfigurationError(f"{file}: expected answers of {made_by}, got {first}; {mend}")
    return {(row["task"], row["number"], row["form"]): row["score"] for row in rows}


class Llm:
    """An OpenVINO folder with its chat template; greedy."""

    def __init__(self, folder: Path, batch: int, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_seqs = batch
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": threads, "sampler_num_threads": threads}
        pipeline = genai.ContinuousBatchingPipeline
        self._pipeline = pipeline(str(folder), scheduler, "CPU", properties)
        self._config = genai.GenerationConfig(str(folder / "generation_config.json"))
        self._config.max_new_tokens = MAX_TOKENS
        self._config.do_sample = False
        self._config.apply_chat_template = False
        self._template: ChatTemplate = load_chat_template("", folder)
        self._batch = batch

    def answers(self, conversations: Sequence[Sequence[Turn]]) -> Iterator[str]:
        """The LLM's answers, in order."""
        for start in range(0, len(conversations), self._batch):
            some = conversations[start : start + self._batch]
            prompts = [self._template.render(turns) for turns in some]
            for result in self._pipeline.generate(prompts, [self._config] * len(prompts)):
                yield result.m_generation_ids[0]


def command_in(answer: str) -> str:
    """The command of an answer: what stands in its first fence, if there is one."""
    if "```" not in answer:
        return answer.strip()
    inside = answer.split("```")[1]
    first, _, rest = inside.partition("\n")
    return (rest if first.strip().isalpha() and rest else inside).strip()
