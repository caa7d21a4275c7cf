"""Public sets of requests with right answers, read from a folder that the user has.

None of them is part of the project; a user has the files from the repositories named: NL2Bash
(TellinaTool/nl2bash, ``nl2bash.nl`` and ``nl2bash.cm``), Banking77 (PolyAI-LDN/
task-specific-datasets, ``banking77_train.csv`` and ``banking77_test.csv``), GSM8K
(openai/grade-school-math, ``gsm8k_train.jsonl`` and ``gsm8k_test.jsonl``).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from echolm.errors import ConfigurationError

from echolm_lab.tasks.chrf import chrf

Pair = tuple[str, str]
"""A request and its right answer."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"```(?:\w+\n)?\s*(.*?)(?:```|$)", re.DOTALL)


@dataclass(frozen=True)
class PublicTask:
    """What is asked of an LLM, and how its answers are scored.

    Attributes:
        system_prompt: says what to answer with.
        max_tokens: of an answer.
        examples: pairs that can be shown.
        requests: other pairs, which are asked.
        score: of an answer, given the right one, 0..1.
    """

    name: str
    system_prompt: str
    max_tokens: int
    examples: tuple[Pair, ...]
    requests: tuple[Pair, ...]
    score: Callable[[str, str], float]


def command_of(answer: str) -> str:
    """The first line of an answer, or of the code block in it."""
    block = _FENCE.search(answer)
    lines = (block[1] if block else answer).strip().splitlines()
    return lines[0].strip() if lines else ""


def score_command(answer: str, right: str) -> float:
    """chrF of the command."""
    return chrf(command_of(answer), right)


def score_label(answer: str, right: str) -> float:
    """1 if the answer is the label, whatever its case and the marks around it."""
    lines = answer.strip().splitlines()
    return float(bool(lines) and lines[0].strip(" .\"'`*").casefold() == right.casefold())


def score_number(answer: str, right: str) -> float:
    """1 if the number after ``####``, or else the last one, is the right one."""
    return float(_final_number(answer) == _final_number(right) != "")


def _final_number(text: str) -> str:
    _, marked, after = text.partition("####")
    numbers = _NUMBER.findall(after if marked else text)
    if not numbers:
        return ""
    last = (numbers[0] if marked else numbers[-1]).replace(",", "")
    return f"{float(last):g}"


def nl2bash(folder: Path, seed: int) -> PublicTask:
    """Requests for a shell command, and what an expert wrote; a fifth of them is asked."""
    texts = _lines(folder / "nl2bash.nl"), _lines(folder / "nl2bash.cm")
    pairs: dict[str, Pair] = {}
    for request, command in zip(*texts, strict=True):
        if request.strip() and command.strip():
            pairs.setdefault(request.strip().lower(), (request.strip(), command.strip()))
    mixed = _mixed(list(pairs.values()), seed)
    asked = len(mixed) // 5
    prompt = (
        "You translate requests into one line of bash. "
        "Answer with the command only, without explanation."
    )
    return PublicTask("NL2Bash", prompt, 100, mixed[asked:], mixed[:asked], score_command)


def banking77(folder: Path, seed: int) -> PublicTask:
    """Messages to a bank, each with one of 77 intents."""
    train, test = (
        [(row["text"].strip(), row["category"]) for row in csv.DictReader(lines)]
        for lines in (_lines(folder / f"banking77_{part}.csv") for part in ("train", "test"))
    )
    prompt = (
        "Classify the customer's message to a bank. Answer with exactly one of these labels and "
        f"nothing else: {', '.join(sorted({label for _, label in train}))}"
    )
    parts = _mixed(train, seed), _mixed(test, seed)
    return PublicTask("Banking77", prompt, 16, *parts, score_label)


def gsm8k(folder: Path, seed: int) -> PublicTask:
    """Word problems with worked answers; a calculator's annotations are left out."""
    train, test = (
        [
            (row["question"], re.sub(r"<<.*?>>", "", row["answer"]))
            for row in map(json.loads, _lines(folder / f"gsm8k_{part}.jsonl"))
        ]
        for part in ("train", "test")
    )
    prompt = "Solve the problem step by step. End with a line '#### ' and the number."
    parts = _mixed(train, seed), _mixed(test, seed)
    return PublicTask("GSM8K", prompt, 320, *parts, score_number)


PUBLIC_TASKS: dict[str, Callable[[Path, int], PublicTask]] = {
    task.__name__: task for task in (nl2bash, banking77, gsm8k)
}
"""By name: reads a task from a folder, in the order of a seed.

ConfigurationError if a file is missing.
"""


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"{file}: expected a file of a public data set, got: {error.strerror}; "
            "echolm_lab/tasks/public_tasks.py says where it is from"
        ) from error


def _mixed(pairs: list[Pair], seed: int) -> tuple[Pair, ...]:
    mixed = list(pairs)
    Random(seed).shuffle(mixed)
    return tuple(mixed)
