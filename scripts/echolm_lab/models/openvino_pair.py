"""The pair's OpenVINO LLMs on the workload: answers, scores by domain, requests/s."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino_genai as genai
from echolm.embedding.embedder import OnnxEmbedder
from echolm.embedding.tokenizer import TextTokenizer
from numpy.typing import NDArray

from echolm_lab.tasks import WorkItem, grade
from echolm_lab.tasks.episodes import Trial
from echolm_lab.tasks.prompt import render

CONTEXT_TOKENS = 2048
BLOCK_TOKENS = 32  # of OpenVINO's key/value cache on a CPU
SMALL_CONDITIONS = {  # name: (relevant, distracting examples)
    "small alone": (0, 0),
    "small, 1 relevant": (1, 0),
    "small, 2 relevant": (2, 0),
    "small, 3 relevant": (3, 0),
    "small, 4 relevant": (4, 0),
    "small, 1 relevant + 1 other": (1, 1),
    "small, 1 relevant + 3 others": (1, 3),
    "small, 2 relevant + 2 others": (2, 2),
    "small, 2 relevant + 10 others": (2, 10),
    "small, 2 others": (0, 2),
}
COLUMNS = ("all", "shell", "sql", "tools", "support", "seen", "unseen")


@dataclass(frozen=True)
class Scored:
    """A graded answer and the groups that it counts for."""

    score: float
    groups: tuple[str, ...]


class Llm:
    """An OpenVINO folder behind continuous batching with prefix caching; greedy."""

    def __init__(self, folder: Path, batch: int, max_tokens: int) -> None:
        scheduler = genai.SchedulerConfig()
        # Not a size in GB: a full cache of very many blocks is slow, since OpenVINO GenAI 2026.4
        # looks through all of them to evict one (measured: 7 times the CPU time per request).
        scheduler.num_kv_blocks = batch * CONTEXT_TOKENS // BLOCK_TOKENS
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = batch
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU")
        self._config = genai.GenerationConfig(str(folder / "generation_config.json"))
        self._config.max_new_tokens = max_tokens
        self._config.do_sample = False

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        results = self._pipeline.generate(list(prompts), [self._config] * len(prompts))
        return [result.m_generation_ids[0] for result in results]


class Progress:
    """A counter on standard error."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, count: int, what: str) -> None:
        self._done += count
        print(f"\r{self._done}/{self._total} {what:32s}", end="", file=sys.stderr, flush=True)


def answer(llm: Llm, trials: Sequence[Trial], progress: Progress, name: str) -> list[str]:
    """Answers in order, in chunks large enough to keep the batch full."""
    texts: list[str] = []
    for at in range(0, len(trials), 256):
        part = trials[at : at + 256]
        texts += llm([render(t.item.text, t.examples) for t in part])
        progress(len(part), name)
    return texts


def graded(trials: Iterable[Trial], texts: Iterable[str]) -> list[Scored]:
    return [
        Scored(
            grade(trial.item, text),
            ("all", trial.item.domain, "seen" if trial.seen_by_small else "unseen"),
        )
        for trial, text in zip(trials, texts, strict=True)
    ]


def summary(rows: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Mean score, share of exact answers and count by group."""
    result = {}
    for group in COLUMNS:
        scores = [row.score for row in rows if group in row.groups]
        if scores:
            result[group] = {
                "score": round(sum(scores) / len(scores), 4),
                "exact": round(sum(s == 1.0 for s in scores) / len(scores), 4),
                "n": len(scores),
            }
    return result


def nearest_past_answers(
    embedder: Path, past: Sequence[WorkItem], items: Sequence[WorkItem]
) -> list[str]:
    """For each item the answer of the past request with the highest cosine."""
    tokenizer, model = TextTokenizer.load(embedder), OnnxEmbedder.load(embedder)

    def vectors(texts: list[str]) -> NDArray[np.float32]:
        parts = []
        for at in range(0, len(texts), 64):
            tokens = tokenizer.encode(texts[at : at + 64])
            parts.append(model.embed(tokens.input_ids, tokens.attention_mask))
        return np.concatenate(parts)

    best = (vectors([i.text for i in items]) @ vectors([i.text for i in past]).T).argmax(1)
    return [past[n].answer for n in best]


def measure_speed(llm: Llm, prompts: Sequence[str]) -> dict[str, float]:
    """Requests/s of fresh prompts, and CPU milliseconds per request."""
    cpu, started = cpu_seconds(), time.monotonic()
    llm(prompts)
    seconds = time.monotonic() - started
    return {
        "requests_per_s": round(len(prompts) / seconds, 1),
        "cpu_ms_per_request": round((cpu_seconds() - cpu) / len(prompts) * 1000, 1),
    }


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    counts = {
        group: max((int(row[group]["n"]) for row in report.values() if group in row), default=0)
        for group in COLUMNS
    }
    lines = [f"{'score':28s}" + "".join(f"{g:>9s}" for g in COLUMNS) + f"{'exact':>9s}"]
    lines.append(f"{'n':28s}" + "".join(f"{counts[g]:9d}" for g in COLUMNS))
    for name, row in report.items():
        cells = "".join(f"{row[g]['score']:9.3f}" if g in row else " " * 9 for g in COLUMNS)
        lines.append(f"{name:28s}{cells}{row['all']['exact']:9.3f}")
    return "\n".join(lines)
