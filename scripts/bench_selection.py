#!/usr/bin/env python3
"""Compare ways to choose examples on public tasks, with any LLM that reads them.

The LLM is a model directory behind one of EchoLM's engines, or any server of OpenAI's API. Each
seed mixes the task's pairs anew: some are examples, some are rated while EchoLM learns, and on the
rest all ways are compared. Prints one table, the mean and the spread over the seeds, and ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from echolm.conversation import Turn
from echolm.embedding.texts import TextEmbedder
from echolm.engines import ENGINES, create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest
from echolm.errors import EchoError
from echolm.llm.chat_template import few_shot, load_chat_template
from echolm.llm.openai_client import OpenAIClient
from echolm.llm.openai_messages import OpenAIMessages
from echolm.llm.tokens import token_counter
from echolm.primitives import Sampling
from echolm.serving.serve import prepare_embedder
from echolm.settings import LLMSettings
from echolm.settings.loading import load_settings
from echolm_lab.experiments.arguments import at_least_one, option
from echolm_lab.experiments.selection import Ask, Comparison, Scores
from echolm_lab.tasks.public_tasks import PUBLIC_TASKS, Pair, PublicTask
from rich.console import Console
from rich.table import Table

Generate = Callable[[Sequence[str], Sampling], list[str]]
"""Answers to prompts, in their order."""

_TIMEOUT_S = 600.0


def turns_of(task: PublicTask, examples: Sequence[Pair], request: str) -> list[Turn]:
    """A request after its examples as earlier turns, as EchoLM's endpoints put it."""
    return few_shot([Turn("user", request)], examples, task.system_prompt)


def by_engine(options: argparse.Namespace) -> Ask:
    """An LLM of a model directory."""
    engine = create_engine(options.engine, options.model, dict(options.option))
    tokenizer = options.tokenizer or options.model
    template = load_chat_template(options.chat_template, tokenizer)

    def ask(task: PublicTask, asked: Sequence[tuple[Sequence[Pair], str]]) -> list[str]:
        answers: list[str | Exception] = [""] * len(asked)
        left, done = len(asked), threading.Event()

        def take(k: int, chunk: GenerationChunk | Exception) -> None:
            nonlocal left
            answers[k] = chunk if isinstance(chunk, Exception) else chunk.text
            if isinstance(chunk, Exception) or chunk.is_last:
                left -= 1
                if not left:
                    done.set()

        sampling = Sampling(
            max_tokens=task.max_tokens,
            stop=template.stop,
            repetition_penalty=options.repetition_penalty,
        )
        for k, (examples, request) in enumerate(asked):
            prompt = template.render(turns_of(task, examples, request))
            generation = GenerationRequest(
                uuid.uuid4().hex, prompt, sampling, add_special_tokens=False
            )
            engine.submit(generation, lambda chunk, k=k: take(k, chunk))  # type: ignore[misc]
        done.wait()
        return [_text(answer) for answer in answers]

    return ask


def _text(answer: str | Exception) -> str:
    if isinstance(answer, Exception):
        raise answer
    return answer


def by_server(options: argparse.Namespace) -> Ask:
    """An LLM behind a server of OpenAI's API."""
    llm = LLMSettings(
        name="small_llm",
        cost=1.0,
        takes_examples=True,
        contract="openai",
        url=options.url,
        remote_model=options.remote_model,
    )
    client, template = OpenAIClient(llm, _TIMEOUT_S), OpenAIMessages()

    def ask(task: PublicTask, asked: Sequence[tuple[Sequence[Pair], str]]) -> list[str]:
        sampling = Sampling(
            max_tokens=task.max_tokens, repetition_penalty=options.repetition_penalty
        )

        async def all_answers() -> list[str]:
            prompts = [template.render(turns_of(task, *one)) for one in asked]
            answers = await asyncio.gather(
                *(client.generate(uuid.uuid4().hex, p, sampling, None) for p in prompts)
            )
            return [answer.text for answer in answers]

        return asyncio.run(all_answers())

    return ask


def answered_by(ask: Ask, task: PublicTask, console: Console) -> PublicTask:
    """The task with an LLM's answers, without examples, in place of the right ones to show."""
    shown: list[Pair] = []
    for start in range(0, len(task.examples), 64):
        part = [request for request, _ in task.examples[start : start + 64]]
        shown += zip(part, ask(task, [((), request) for request in part]), strict=True)
        console.print(f"{task.name}: {len(shown)} of {len(task.examples)} examples answered")
    return replace(task, examples=tuple(shown))


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="with the public sets' files")
    llm = parser.add_mutually_exclusive_group(required=True)
    llm.add_argument("--model", type=Path, help="model directory of an engine")
    llm.add_argument("--url", help="of a server of OpenAI's API, as in http://host:8000/v1")
    parser.add_argument("--engine", default="openvino", choices=sorted(set(ENGINES) - {"dummy"}))
    parser.add_argument(
        "--option", type=option, action="append", default=[], metavar="KEY=VALUE",
        help="an option of the engine; may be repeated",
    )  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, help="folder; default: that of --model")
    parser.add_argument("--chat-template", default="", help="default: the tokenizer's own")
    parser.add_argument("--remote-model", default="", help="the LLM's name on the server")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--tasks", nargs="+", choices=list(PUBLIC_TASKS), default=[*PUBLIC_TASKS])
    parser.add_argument("--examples", type=at_least_one, default=5_000, help="that can be shown")
    parser.add_argument("--own", action="store_true", help="examples have the LLM's own answers")
    parser.add_argument("--learning", type=at_least_one, default=1_000, help="requests to rate")
    parser.add_argument("--requests", type=at_least_one, default=200, help="to compare on")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    options = parser.parse_args()
    console = Console(stderr=True)
    report: dict[str, list[Scores]] = {}
    try:
        settings = load_settings()
        prepare_embedder(settings, console.print)
        embed = TextEmbedder(settings.embedding)
        ask = by_engine(options) if options.model else by_server(options)
        tokens = token_counter(options.tokenizer or options.model)
        for name in options.tasks:
            for seed in range(1, options.seeds + 1):
                task = PUBLIC_TASKS[name](options.folder, seed)
                task = replace(task, examples=task.examples[: options.examples])
                task = answered_by(ask, task, console) if options.own else task
                sizes = options.learning, options.requests
                scores = Comparison(task, settings, tokens, embed, ask, seed, *sizes).run()
                console.print(f"{task.name}, seed {seed}: {scores.means}")
                report.setdefault(task.name, []).append(scores)
    except EchoError as error:
        print(error, file=sys.stderr)
        return 2
    _print(report)
    print(json.dumps({task: [asdict(s) for s in runs] for task, runs in report.items()}))
    return 0


def _print(report: dict[str, list[Scores]]) -> None:
    table = Table(title="mean score ± standard deviation over the seeds")
    table.add_column("")
    for task in report:
        table.add_column(task, justify="right")
    for way in next(iter(report.values()))[0].means:
        values = [np.array([s.means[way] for s in runs]) for runs in report.values()]
        cells = (
            f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" if len(v) > 1 else f"{v.mean():.3f}"
            for v in values
        )
        table.add_row(way, *cells)
    worst = [np.mean([s.windows for s in runs], axis=0).min() for runs in report.values()]
    table.add_row("worst 200 of learning, against nearest 3", *(f"{v:+.3f}" for v in worst))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
