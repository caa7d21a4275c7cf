"""Public sets on which routers are compared: requests, and how well each LLM answered them.

None of them is part of the project; a user has the files from the repositories named.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from echolm.errors import ConfigurationError
from numpy.typing import NDArray

GSM8K_COSTS = {"mistralai/Mixtral-8x7B-Instruct-v0.1": 0.24, "gpt-4-1106-preview": 24.7}
"""Dollars for a million tokens (RouteLLM, Ong et al. 2024, §5.4)."""


@dataclass(frozen=True)
class RoutingSet:
    """Requests that several LLMs have answered.

    Attributes:
        prompts: n requests.
        llms: names of k LLMs, the cheapest first.
        scores: how good each answer is, 0 to 1, FP64 [n, k].
        costs: mean cost of an answer of each LLM; that of the most expensive is 1, FP64 [k].
    """

    name: str
    prompts: tuple[str, ...]
    llms: tuple[str, ...]
    scores: NDArray[np.float64]
    costs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean score of each LLM, FP64 [k]."""
        return np.asarray(self.scores.mean(axis=0))

    def scores_of(self, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
        """The score of the chosen LLM's answer to each request, FP64 [n]."""
        return np.asarray(self.scores[np.arange(len(self)), chosen])

    def take(self, rows: NDArray[np.intp]) -> RoutingSet:
        """The requests at these indices."""
        prompts = tuple(self.prompts[row] for row in rows)
        return RoutingSet(self.name, prompts, self.llms, self.scores[rows], self.costs)


def load_gsm8k(path: Path) -> RoutingSet:
    """RouteLLM's ``gsm8k_responses.csv``: a prompt, and a column for each LLM, True or False.

    Raises:
        ConfigurationError: the file cannot be read, or a column or value is not as expected.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        prompts = [row["prompt"] for row in rows]
        scores = [[{"True": 1.0, "False": 0.0}[row[llm]] for llm in GSM8K_COSTS] for row in rows]
    except (OSError, UnicodeError, KeyError, csv.Error) as error:
        expected = f"columns prompt, {', '.join(GSM8K_COSTS)} with True or False"
        raise ConfigurationError(f"{path}: expected {expected}, got {error!r}") from error
    return _routing_set("GSM8K", path, prompts, list(GSM8K_COSTS), scores, [*GSM8K_COSTS.values()])


def load_paretobandit(path: Path) -> RoutingSet:
    """ParetoBandit's ``val_k4.jsonl``: a prompt, and the reward and cost of each LLM's answer.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not as expected.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = [str(row["prompt"]) for row in rows]
        llms = sorted(rows[0]["arms"]) if rows else []
        scores = [[float(row["arms"][llm]["reward"]) for llm in llms] for row in rows]
        costs = [[float(row["arms"][llm]["cost"]) for llm in llms] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "lines with prompt and arms, each of which has reward and cost"
        raise ConfigurationError(f"{path}: expected {expected}, got {error!r}") from error
    means = np.mean(costs, axis=0).tolist() if costs else []
    return _routing_set("ParetoBandit", path, prompts, llms, scores, means)


def _routing_set(
    name: str,
    path: Path,
    prompts: list[str],
    llms: list[str],
    scores: list[list[float]],
    costs: list[float],
) -> RoutingSet:
    if not prompts or not llms:
        expected = "at least one request and one LLM"
        raise ConfigurationError(f"{path}: expected {expected}, got {len(prompts)}, {len(llms)}")
    order = np.argsort(costs, kind="stable")
    relative = np.array(costs)[order] / max(costs)
    names = tuple(llms[column] for column in order)
    return RoutingSet(name, tuple(prompts), names, np.array(scores)[:, order], relative)
