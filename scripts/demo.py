#!/usr/bin/env python3
"""Show what EchoLM does: serve both LLMs on this machine, send live requests, compare.

Starts Triton, Milvus Lite and the two LLMs over a store of examples: past answers of the large
LLM, recorded with scripts/record_past.py. EchoLM answers some requests, of which a share is
rated; and then the same new requests are asked of the large LLM alone, the small one alone, a copy
of the nearest stored answer, a semantic cache, and EchoLM, all on the same server.
Prints a table and writes build/demo.json and a plot. With --small, --large and --requests it does
so with LLMs and requests of yours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

# Milvus Lite sends idle clients away, which come back; gRPC would print that among the progress.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from echolm.errors import ConfigurationError, EchoError
from echolm.serving.build import built_root
from echolm.serving.serve import Endpoints, ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm_lab.experiments.bench import connected
from echolm_lab.experiments.comparison import Plan, PolicyComparison, store_past
from echolm_lab.experiments.scoring import ItemScores, JudgedScores
from echolm_lab.models.own_pair import write_pair
from echolm_lab.policies.base import MAX_TOKENS, Asking
from echolm_lab.report.environment import host, versions
from echolm_lab.report.tables import print_comparison
from echolm_lab.tasks.past import recorded_past
from echolm_lab.tasks.requests import (
    Asked,
    FileQuestions,
    check_judged,
    divide,
    metric_of,
    read_requests,
)
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """What is asked, and how answers are scored.

    Attributes:
        questions: None: those of the demo workload.
        past: requests with their answers, which are in the store at the start.
        past_of: whose answers these are.
        asked_of_large: requests that the large LLM answers first, whose answers are the past.
        judged: whether a judge compares the answers with the large LLM's.
        about: what a score is, in a sentence.
    """

    questions: FileQuestions | None
    past: Sequence[tuple[str, str]]
    past_of: str
    asked_of_large: Sequence[Asked] = ()
    judged: bool = False
    about: str = ""


def demo_task(history: int) -> Task:
    """The demo workload over its recorded past."""
    past = [(e.item.text, e.response) for e in recorded_past(history)]
    return Task(None, past, "answers of the large LLM")


def own_task(options: argparse.Namespace) -> Task:
    """The requests of a file."""
    metric = options.metric
    judged = metric in ("judge", "")
    asked = read_requests(options.file, metric_of("chrf" if judged else metric))
    has_references = bool(asked[0].reference)
    if metric == "" and has_references:
        metric, judged = "chrf", False
    check_judged(asked, metric or "judge", options.past)
    questions = divide(asked, options.seed, options.history, options.learning, options.requests)
    about = "" if judged else f"Score: {metric} of the answer and the reference."
    if options.past == "large" or not has_references:
        of = "answers of the large LLM"
        return Task(questions, [], of, questions.past, judged, about)
    past = [(item.text, item.reference) for item in questions.past]
    return Task(questions, past, "reference answers", (), judged, about)


async def measure(
    options: argparse.Namespace,
    console: Console,
    settings: Settings,
    endpoints: Endpoints,
    task: Task,
) -> dict[str, Any]:
    """All stages; returns what goes into the JSON file."""
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    asking = Asking(options.system_prompt, options.max_tokens)
    async with connected(settings, endpoints, console, options.concurrency, asking) as site:
        history = len(task.past)
        if task.asked_of_large:
            history = await site.store_answers_of_large(task.asked_of_large)
        scoring = JudgedScores(site.judge()) if task.judged else ItemScores(task.about)
        if task.judged:  # EchoLM has its judge, too, and no ratings
            plan = replace(plan, rated=0.0)
        comparison = PolicyComparison(site, plan, None, task.questions, scoring)
        report = await comparison.run()
    report["past"] |= {"history": history, "of": task.past_of}
    if isinstance(scoring, JudgedScores):
        report["undecided"] = scoring.undecided
    return report


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    own = parser.add_argument_group("LLMs and requests of your own")
    for role in ("small", "large"):
        own.add_argument(
            f"--{role}",
            default="",
            metavar="MODEL",
            help="the folder of an OpenVINO model, or http(s)://host:port/v1#NAME for an LLM of an "
            "OpenAI-compatible server (default: that of --config, or the shipped one)",
        )
    own.add_argument(
        "--requests",
        dest="file",
        type=Path,
        default=None,
        metavar="FILE",
        help="JSON lines, each with a request and, if there is one, a reference answer",
    )
    own.add_argument(
        "--metric",
        default="",
        help="what scores an answer: exact, chrf (both by the reference), judge (the large LLM "
        "compares it with its own), or a grader as path/to/file.py:function (default: chrf, "
        "without references judge)",
    )
    own.add_argument(
        "--past",
        choices=("reference", "large"),
        default="",
        help="whose answers are in the store at the start (default: the references, if there are "
        "any, else the large LLM's own)",
    )
    own.add_argument(
        "--system-prompt", default="", metavar="FILE", help="text of the system prompt of all"
    )
    own.add_argument("--max-tokens", type=int, default=None, help="longest answer (default: 128)")
    parser.add_argument(
        "--history", type=int, default=3_000, help="past requests with answers in the store"
    )
    parser.add_argument(
        "--learning", type=int, default=1_000, help="requests that EchoLM then answers"
    )
    parser.add_argument("--rated", type=float, default=0.2, help="share of those that is rated")
    parser.add_argument(
        "--measured", dest="requests", type=int, default=400, help="new requests per policy"
    )
    parser.add_argument(
        "--stage-seconds",
        type=float,
        default=90.0,
        help="most for --learning, and for the large LLM's --measured; a slow machine does fewer",
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=None,
        help="in flight at saturation (default: 64; 8 for LLMs of yours)",
    )
    parser.add_argument("--latency-seconds", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml of two LLMs")
    parser.add_argument("--profile", default="local", help="of the model repository")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo.json")
    options = parser.parse_args(argv)
    if bool(options.small) != bool(options.large):
        parser.error("--small, --large: expected both or none")
    if options.small and options.config:
        parser.error("--config: expected it or --small and --large, got both")
    if options.file and not (options.small or options.config):
        parser.error(
            "--requests: expected --small and --large, or --config: the shipped LLMs know no other "
            "requests than the demo's"
        )
    is_own = bool(options.small or options.config)
    options.concurrency = options.concurrency or (8 if is_own else 64)
    options.max_tokens = options.max_tokens or (128 if is_own else MAX_TOKENS)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    console = Console()
    started = time.monotonic()
    try:
        if options.system_prompt:
            options.system_prompt = read_text(Path(options.system_prompt))
        config = options.config
        if options.small:
            folder = options.data_dir.with_name(f"{options.data_dir.name}-models")
            config = write_pair(options.small, options.large, folder, options.concurrency)
        loaded = load_settings(config)
        if len(loaded.llms) != 2:
            raise ConfigurationError(f"llms: expected two to compare, got {len(loaded.llms)}")
        task = own_task(options) if options.file else demo_task(options.history)
        # The past that EchoLM lives through is this run's own.
        shutil.rmtree(options.data_dir, ignore_errors=True)
        settings: Settings = loaded.model_copy(update={"data_dir": options.data_dir})
        if task.judged:
            judging = settings.judging.model_copy(
                update={"kind": "llm", "sample_share": options.rated}
            )
            settings = settings.model_copy(update={"judging": judging})
            if settings.no_judge:
                raise ConfigurationError(f"--metric judge: {settings.no_judge}")
        title = f"storing {task.past_of}"
        store_past(settings, task.past, console, title, options.system_prompt)
        serve = ServeOptions(
            profile=options.profile,
            repository_root=built_root(config, options.profile),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
        )
        with running_server(settings, serve, progress=console.print) as endpoints:
            console.print(f"ready after {time.monotonic() - started:.0f} s")
            report = asyncio.run(measure(options, console, settings, endpoints, task))
    except EchoError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    report["versions"] = versions()
    report["host"] = host()
    report["options"] = {k: v for k, v in vars(options).items() if isinstance(v, int | float)}
    report["seconds"] = time.monotonic() - started
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_comparison(console, report)
    draw(report, options.output.with_suffix(".png"), console)
    console.print(f"written to {options.output} after {report['seconds']:.0f} s")
    for message in report["errors"]:
        console.print(message, style="red", markup=False)
    return 1 if any(row["failed"] for row in report["policies"].values()) else 0


def read_text(file: Path) -> str:
    """A file's text without the newline that an editor puts at its end."""
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--system-prompt: expected a file of text in UTF-8, got {file}: {error}"
        ) from error


def draw(report: dict[str, Any], file: Path, console: Console) -> None:
    """The plot of the table, where matplotlib is installed."""
    try:
        from echolm_lab.report.plots import draw_comparison
    except ModuleNotFoundError as error:
        console.print(f"no plot: {error}; install the extra: pip install -e '.[evaluate]'")
        return
    draw_comparison(report, file)


if __name__ == "__main__":
    sys.exit(main())
