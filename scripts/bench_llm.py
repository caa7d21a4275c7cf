#!/usr/bin/env python3
"""Measure an LLM model directory through its engine, without Triton.

Prints a table (requests/s, time to first token, tokens/s for each setting) and ends with one
JSON line. Prompts are random words, so outputs mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echolm.engines import ENGINES, LLMEngine, create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest, SamplingParams
from echolm.errors import EchoError
from rich.console import Console
from rich.table import Table

_WORDS = ("list", "files", "older", "than", "days", "in", "folder", "sort", "by", "size")


@dataclass(frozen=True)
class Setting:
    """One row: words per prompt, new tokens per answer, requests in flight."""

    prompt_words: int
    max_tokens: int
    concurrency: int


@dataclass(frozen=True)
class Measured:
    """What came out. Times in milliseconds."""

    prompt_words: int
    max_tokens: int
    concurrency: int
    requests: int
    failed: int
    prompt_tokens: float
    output_tokens: float
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    latency_p50_ms: float
    latency_p99_ms: float


class _Load:
    """Keeps ``concurrency`` requests in flight until ``seconds`` have passed."""

    def __init__(self, engine: LLMEngine, setting: Setting, args: argparse.Namespace) -> None:
        self._engine, self._setting, self._args = engine, setting, args
        self._random = random.Random(args.seed)
        shared = int(setting.prompt_words * args.shared_prefix)
        self._prefix = self._words(shared)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._ended = threading.Event()
        self.done: list[tuple[float, float, GenerationChunk]] = []  # latency, TTFT, last chunk
        self.failed = 0

    def run(self) -> float:
        """Give the seconds from the first request to the last answer."""
        start = time.perf_counter()
        self._deadline = start + self._args.seconds
        with self._lock:
            self._in_flight = self._setting.concurrency
        for _ in range(self._setting.concurrency):
            self._submit()
        self._ended.wait()
        return time.perf_counter() - start

    def _words(self, count: int) -> str:
        return " ".join(self._random.choice(_WORDS) for _ in range(count))

    def _submit(self) -> None:
        number = next(self._numbers)
        rest = self._setting.prompt_words - int(
            self._setting.prompt_words * self._args.shared_prefix
        )
        request = GenerationRequest(
            request_id=f"bench-{number}",
            prompt=f"{self._prefix} {number} {self._words(rest)}",
            sampling=SamplingParams(
                max_tokens=self._setting.max_tokens, temperature=self._args.temperature
            ),
            streaming=self._args.stream,
        )
        start = time.perf_counter()
        first: list[float] = []

        def on_chunk(chunk: GenerationChunk | Exception) -> None:
            now = time.perf_counter() - start
            first.append(now)
            if isinstance(chunk, Exception):
                self.failed += 1
                if self.failed == 1:
                    print(f"a request failed: {chunk}", file=sys.stderr)
            elif not chunk.is_last:
                return
            else:
                self.done.append((now, first[0], chunk))
            if time.perf_counter() < self._deadline and self.failed < 100:
                self._submit()
                return
            with self._lock:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._ended.set()

        self._engine.submit(request, on_chunk)


def measure(engine: LLMEngine, setting: Setting, args: argparse.Namespace) -> Measured:
    """Run one setting."""
    load = _Load(engine, setting, args)
    seconds = load.run()
    done = load.done
    if not done:
        raise SystemExit("no request was answered")
    latency = sorted(1e3 * item[0] for item in done)
    ttft = sorted(1e3 * item[1] for item in done)
    return Measured(
        **asdict(setting),
        requests=len(done),
        failed=load.failed,
        prompt_tokens=statistics.mean(item[2].num_input_tokens for item in done),
        output_tokens=statistics.mean(item[2].num_output_tokens for item in done),
        requests_per_s=len(done) / seconds,
        tokens_per_s=sum(item[2].num_output_tokens for item in done) / seconds,
        ttft_p50_ms=_quantile(ttft, 0.5),
        ttft_p99_ms=_quantile(ttft, 0.99),
        latency_p50_ms=_quantile(latency, 0.5),
        latency_p99_ms=_quantile(latency, 0.99),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _option(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path, help="directory of the model's files")
    parser.add_argument("--engine", default="openvino", choices=sorted(set(ENGINES) - {"instant"}))
    parser.add_argument(
        "--option", type=_option, action="append", default=[], metavar="KEY=VALUE",
        help="an option of the engine; may be repeated",
    )  # fmt: skip
    parser.add_argument("--prompt-words", type=_numbers, default=[50], metavar="N[,N…]")
    parser.add_argument("--max-tokens", type=_numbers, default=[64], metavar="N[,N…]")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, 32], metavar="N[,N…]")
    parser.add_argument("--seconds", type=float, default=5.0, help="per setting")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--shared-prefix", type=float, default=0.0, help="share of each prompt that is the same"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument(
        "--no-stream", dest="stream", action="store_false",
        help="ask for whole answers (TTFT is then the latency)",
    )  # fmt: skip
    args = parser.parse_args()
    settings = [
        Setting(*values)
        for values in itertools.product(args.prompt_words, args.max_tokens, args.concurrency)
    ]
    console = Console(stderr=True)
    start = time.perf_counter()
    try:
        engine = create_engine(args.engine, args.model_dir, dict(args.option))
    except EchoError as error:
        print(error, file=sys.stderr)
        return 2
    load_s = time.perf_counter() - start
    rows = []
    try:
        with console.status("") as status:
            for i, setting in enumerate(settings):
                status.update(f"{i + 1}/{len(settings)}: {setting}")
                measure(engine, setting, argparse.Namespace(**{**vars(args), "seconds": 0.0}))
                rows.append(measure(engine, setting, args))
    finally:
        engine.close()
    _print(rows, args)
    result: dict[str, Any] = {
        "benchmark": "llm",
        "engine": args.engine,
        "options": dict(args.option),
        "model_dir": args.model_dir.name,
        "stream": args.stream,
        "load_s": round(load_s, 3),
        "host": {"cpus": os.cpu_count(), "machine": platform.machine()},
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(result))
    return 1 if any(row.failed for row in rows) else 0


def _print(rows: Sequence[Measured], args: argparse.Namespace) -> None:
    table = Table(title=f"{args.model_dir} ({args.engine})")
    for head in ("prompt tok", "new tok", "in flight", "requests/s", "tokens/s"):
        table.add_column(head, justify="right")
    for head in ("TTFT p50 ms", "p99", "latency p50 ms", "p99 "):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            f"{row.prompt_tokens:.0f}", f"{row.output_tokens:.0f}", str(row.concurrency),
            f"{row.requests_per_s:.1f}", f"{row.tokens_per_s:.0f}", f"{row.ttft_p50_ms:.0f}",
            f"{row.ttft_p99_ms:.0f}", f"{row.latency_p50_ms:.0f}", f"{row.latency_p99_ms:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
