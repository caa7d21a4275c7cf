#!/usr/bin/env python3
"""Measure EchoLM on one GPU: quality, throughput and latency against the alternatives.

Each stage is a command of its own, leaves its result in --work and goes on where it was cut:

    bench_gpu.py export                      the shipped pair as Hugging Face checkpoints; or
    bench_gpu.py train small|large           a pair of one's own (needs torch: --python)
    bench_gpu.py past --vllm-python …        12,000 past answers to store in place of 3,000
    bench_gpu.py grow                        both to real-size shapes, the same function
    bench_gpu.py evaluate --vllm-python …    all policies on one server with both LLMs
    bench_gpu.py shapes 3b --vllm-python …   random weights, 0 to 5 examples, both orders
    bench_gpu.py path                        tokenizer, embedder, retriever, router alone
    bench_gpu.py report                      report.md and plots of what was measured
    bench_gpu.py all --vllm-python …         all of it but training, as far as --minutes go

`record` writes scripts/decisions.json, which `shapes` reads. With `--profile local` all of it but
`shapes` runs on a CPU. Give the path's load generator, scripts/perf_analyzer.py, its binary first
on a machine without network.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import grow_model
from bench_llm import numbers, option
from bench_path import instant_repository
from echolm.engines import create_engine
from echolm.errors import EchoError, UnavailableError
from echolm.llm.templates import template
from echolm.primitives import Sampling
from echolm.serving.build import CONFIGURATION, BuildOptions, LLMChoice, build, built_root
from echolm.serving.serve import ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm_lab.bench import changed, connected
from echolm_lab.comparison import Comparison, Kept, Plan, store_past
from echolm_lab.corruption import Interaction
from echolm_lab.engine_load import answer_all, measure_engine
from echolm_lab.load import closed_loop
from echolm_lab.past import PAST_FILE, WORKLOAD_SEED, past_items, recorded_past, write_past
from echolm_lab.policies.base import MAX_TOKENS
from echolm_lab.real_shapes import (
    COUNTS,
    ORDERS,
    VOCABULARY,
    Decisions,
    retrieval_of,
    write_checkpoint,
    write_decisions,
)
from echolm_lab.report import gpu_report
from echolm_lab.report.environment import gpus, host, package_version, versions
from echolm_lab.tasks import WorkItem, Workload, grade
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
DECISIONS = SCRIPTS / "decisions.json"
ROLES = ("small", "large")
COMMITTED = {
    role: ROOT / "model_repository" / "local" / f"{role}_llm" / "1" / "openvino" for role in ROLES
}
HISTORY, RECORDED, RECORDED_SEED = 3_000, 6_000, 3
LONG_PAST = "past.jsonl"
ALL_COUNTS = ",".join(map(str, (0, *COUNTS)))
MEASURED = 600
"""The last of the recorded requests; those before them warm the prefix cache."""
TRAINING = {
    "small": "--minutes 5 --rate 1.2e-3 --requests 8 --workers 14 --shape "
    '\'{"layers":8,"hidden":640,"heads":10,"kv_heads":2,"feed_forward":1792}\'',
    "large": "--minutes 3.3 --rate 3e-4 --warmup 80 --requests 8 --workers 14 --shape "
    '\'{"layers":20,"hidden":2048,"heads":16,"kv_heads":8,"head_dim":128,"feed_forward":5632,'
    '"batch_tokens":16384}\'',
}
"""Arguments of train_pair.py: 38 M and 0.9 B parameters."""
SHAPES = {"small": "1.5b", "large": "14b,kv_heads=20"}
"""The shipped large LLM has 12 key and value heads, more than a 14 B model's 8."""
OUTPUT_TOKENS = 88
"""Of an answer in scripts/past.jsonl, on average."""


def train(options: argparse.Namespace) -> None:
    """Train one LLM with scripts/train_pair.py."""
    output = options.work / "pair" / options.role
    if _there(output):
        return
    command = [str(options.python), str(SCRIPTS / "train_pair.py"), "model", options.role]
    command += ["--tokenizer", str(COMMITTED["large"] / "tokenizer.json"), "--output", str(output)]
    arguments = options.arguments if options.arguments is not None else TRAINING[options.role]
    subprocess.run(command + shlex.split(arguments), check=True)


def export(options: argparse.Namespace) -> None:
    """Write the shipped pair as checkpoints."""
    for role in ROLES:
        output = options.work / "pair" / role
        if not _there(output):
            command = [sys.executable, str(SCRIPTS / "export_hf.py")]
            command += ["--model", str(COMMITTED[role]), "--output", str(output)]
            subprocess.run(command, check=True)


def past(options: argparse.Namespace) -> None:
    """The answers of the pair's large LLM to more past requests than were recorded."""
    file = options.work / LONG_PAST
    if file.is_file():
        print(f"{file} is there already")
        return
    items = past_items(options.count)
    render = template("echolm").render
    engine = create_engine("vllm", options.work / "pair" / "large", _given(options))
    try:
        prompts = [render(item.text, ()) for item in items]
        answers = answer_all(engine, prompts, Sampling(max_tokens=MAX_TOKENS), 512)
    finally:
        engine.close()
    interactions = [Interaction(item, answer) for item, answer in zip(items, answers, strict=True)]
    write_past(file, interactions)
    right = sum(grade(e.item, e.response) for e in interactions)
    print(
        f"{len(interactions)} interactions, mean score {right / len(interactions):.4f}, in {file}"
    )


def grow(options: argparse.Namespace) -> None:
    """Grow both checkpoints, each to its shape."""
    for role in ROLES:
        output = options.work / "grown" / role
        if _there(output):
            continue
        partial = output.with_name(f"{role}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        source, shape = options.work / "pair" / role, getattr(options, f"{role}_shape")
        made = grow_model.grow(source, partial, shape, seed=0, file_bytes=4 << 30)
        partial.rename(output)
        print(json.dumps({**made, "output": str(output)}))


def evaluate(options: argparse.Namespace) -> None:
    """All policies over one server."""
    console = Console()
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    longer = options.work / LONG_PAST
    past_file = longer if longer.is_file() else PAST_FILE
    names = ("profile", "embedder", "processes", "concurrency", "history", "labelled")
    asked = {
        **asdict(plan),
        **{name: getattr(options, name) for name in names},
        "past": str(past_file),
        "engines": [
            *(str(getattr(options, role) or _best(options.work, role)) for role in ROLES),
            *(getattr(options, f"{role}_memory") for role in ROLES),
            *(list(map(list, getattr(options, f"{part}set"))) for part in ("", "small_", "large_")),
        ],
    }
    file, data = options.work / "evaluate.json", options.work / "data"
    kept = Kept(file)
    if kept.parts.get("asked") != asked or not data.is_dir():
        file.unlink(missing_ok=True)
        for folder in (data, options.work / "served"):
            shutil.rmtree(folder, ignore_errors=True)
        kept = Kept(file)
    if "report" in kept.parts:
        print(f"{file} is there already")
        return
    config = _configuration(options)
    settings = _known(load_settings(config)).model_copy(update={"data_dir": data})
    if not data.is_dir():
        store_past(settings, recorded_past(options.history, past_file), console)
        kept.add("asked", asked)
    kept.add("machine", _machine(options))
    serve = ServeOptions(
        profile=options.profile,
        repository_root=built_root(config, options.profile),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    started = time.monotonic()
    with running_server(settings, serve, progress=console.print) as endpoints:
        console.print(f"ready after {time.monotonic() - started:.0f} s")

        async def measure() -> None:
            async with connected(settings, endpoints, console, options.concurrency) as site:
                comparison = Comparison(site, plan, kept)
                report = await comparison.run(recorded_past(options.labelled))
                report["small_with_examples"] = await comparison.steady(
                    "small_with_examples", report["latency_rate"]
                )
                kept.add("report", report)

        asyncio.run(measure())


def _known(settings: Settings) -> Settings:
    """Settings with the prior qualities that are known of the shipped pair, as in the demo.

    `echolm build` has to guess, and guesses low: then the first thousand requests teach little.
    """
    qualities = {llm.name: llm.prior_quality for llm in load_settings().llms}
    llms = [llm.model_copy(update={"prior_quality": qualities[llm.name]}) for llm in settings.llms]
    return settings.model_copy(update={"llms": llms})


def _configuration(options: argparse.Namespace) -> Path | None:
    """The echolm.toml to serve by, built if it is a profile for GPUs."""
    if options.profile == "local":
        return None
    output = options.work / "served"
    if not (output / CONFIGURATION).is_file():
        llms = {
            role: LLMChoice(
                getattr(options, role) or _best(options.work, role),
                memory=getattr(options, f"{role}_memory"),
                options={**_given(options), **dict(getattr(options, f"{role}_set"))},
            )
            for role in ROLES
        }
        choice = BuildOptions(
            options.profile,
            llms,
            output,
            embedder=options.embedder,
            processes=options.processes,
            force=True,
        )
        build(choice, print)
    return output / CONFIGURATION


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's options of the command line."""
    python = {"python": str(options.vllm_python)} if options.vllm_python else {}
    return {**python, **dict(options.set)}


def _best(work: Path, role: str) -> Path:
    """The grown checkpoint of an LLM, if there is one, else the pair's."""
    grown: Path = work / "grown" / role
    return grown if _there(grown) else work / "pair" / role


def _there(folder: Path) -> bool:
    if found := (folder / "config.json").is_file():
        print(f"{folder} is there already")
    return found


def shapes(options: argparse.Namespace) -> None:
    """One engine with random weights under the recorded prompts."""
    file, kept = _shape_file(options), _shape_kept(options)
    wanted = _settings_left(options, kept)
    if not wanted:
        print(f"all of {file.stem} is there already")
        return
    if file.is_file() and "machine" not in kept.parts:
        print(f"{file} is of other settings or decisions: measured anew")
    live = Workload(seed=WORKLOAD_SEED).stream(RECORDED, seed=RECORDED_SEED, phase="live")
    decisions = Decisions(DECISIONS, live, recorded_past(HISTORY))
    folder = file.parent / file.stem
    write_checkpoint(folder, options.shape.config(), COMMITTED["large"], options.vocabulary)
    given = {"load_format": "dummy", **_given(options)}
    started = time.monotonic()
    engine = create_engine("vllm", folder, given)
    try:
        print(f"loaded after {time.monotonic() - started:.0f} s", flush=True)
        sampling = Sampling(max_tokens=options.max_tokens)

        def run(key: str) -> dict[str, Any]:
            count, order, concurrency = wanted[key]
            prompts = list(decisions.prompts(count, order, salt=key))
            warming = prompts[-MEASURED - options.warm_up : -MEASURED]
            # They fill the cache, as a server's is: one token each will do.
            measure_engine(engine, warming, Sampling(max_tokens=1), 128, math.inf)
            figures = measure_engine(
                engine, prompts[-MEASURED:], sampling, concurrency, options.seconds
            )
            return {
                "examples": count,
                "order": order,
                "warm_up": len(warming),
                "concurrency": concurrency,
                **asdict(figures),
            }

        # What is compiled at its first use is not the first setting's burden.
        some = itertools.islice(decisions.prompts(3, "similarity", salt="warm"), 256)
        measure_engine(engine, some, sampling, max(options.concurrency), math.inf)
        kept.add("machine", _machine(options))
        for key in wanted:
            kept.add(key, run(key))
            print(json.dumps(kept.parts[key]), flush=True)
    finally:
        engine.close()


def _shape_file(options: argparse.Namespace) -> Path:
    """Of the figures; the checkpoint is in the folder of that name beside it."""
    name = options.name or "-".join(str(value) for value in asdict(options.shape).values())
    file: Path = options.work / "shapes" / f"{name}.json"
    return file


def _shape_kept(options: argparse.Namespace) -> Kept:
    """What is measured of the shape; figures that are not comparable with those asked for go."""
    asked = {
        "shape": {**asdict(options.shape), "vocabulary": options.vocabulary, **dict(options.set)},
        **{name: getattr(options, name) for name in ("seconds", "max_tokens", "warm_up")},
        "decisions": hashlib.sha256(DECISIONS.read_bytes()).hexdigest(),
    }
    kept = Kept(_shape_file(options))
    if kept.parts.get("asked") != asked:
        kept.parts = {"asked": asked}
    return kept


def _settings_left(options: argparse.Namespace, kept: Kept) -> dict[str, tuple[int, str, int]]:
    """Examples, order and concurrency of what is not measured yet, by key.

    One repeat comes after the other, so that what changes on the machine meets all settings.
    """
    return {
        key: (count, order, concurrency)
        for number in range(1, options.repeats + 1)
        for concurrency in options.concurrency
        for count in options.counts
        for order in (ORDERS if count else ("none",))
        if (key := f"{count} {order} {concurrency} {number}") not in kept.parts
    }


def path(options: argparse.Namespace) -> None:
    """The path without generation, with the embedder of the profile."""
    file = options.work / "path.json"
    if file.is_file():
        print(f"{file} is there already")
        return
    command = [sys.executable, str(SCRIPTS / "bench_path.py")]
    command += [f"--examples={options.examples}", f"--concurrency={options.path_concurrency}"]
    command += [f"--requests={options.path_requests}", f"--rate={options.rate}"]
    config = _configuration(options)
    if config is not None:
        command.append(f"--config={config}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode:
        raise UnavailableError(f"bench_path.py ended with {done.returncode}")
    measured = json.loads(done.stdout.splitlines()[-1])
    Kept(file).add("machine", _machine(options))
    Kept(file).add("path", measured)


def record(options: argparse.Namespace) -> None:
    """The retriever's choices for new requests over the recorded past, LLMs left out."""
    console = Console()
    items = Workload(seed=WORKLOAD_SEED).stream(RECORDED, seed=RECORDED_SEED, phase="live")
    chosen: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    with tempfile.TemporaryDirectory() as work:
        store = load_settings().model_copy(update={"data_dir": Path(work) / "store"})
        store_past(store, recorded_past(HISTORY), console)
        models = instant_repository(Path(work) / "models")
        for number, (count, order) in enumerate((c, o) for c in COUNTS for o in ORDERS):
            data = Path(work) / str(number)
            data.mkdir()
            shutil.copy(store.data_dir / "milvus.db", data)
            settings = changed(store, retrieval_of(count, order), data)
            chosen[count, order] = asyncio.run(_choices(settings, models, items, console))
    write_decisions(options.output, chosen)


async def _choices(
    settings: Settings, models: Path, items: Sequence[WorkItem], console: Console
) -> list[tuple[int, ...]]:
    """Ids of the examples that each request gets."""
    serve = ServeOptions(
        profile=None,
        model_repositories=(ROOT / "model_repository" / "core", models),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with running_server(settings, serve, progress=console.print) as endpoints:
        async with connected(settings, endpoints, console, 32) as site:
            found: dict[str, tuple[int, ...]] = {}

            class Asking:
                name = "small_with_examples"

                async def send(self, item: WorkItem) -> Any:
                    answer = await site.client.generate(
                        item.text, llm="small_llm", cache_control="no-store", max_tokens=MAX_TOKENS
                    )
                    found[item.text] = answer.example_ids

            await closed_loop(Asking(), items, 32)
            return [found[item.text] for item in items]


def report(options: argparse.Namespace) -> None:
    """Markdown and plots of what there is."""
    print(gpu_report.write(options.work))


def all_stages(options: argparse.Namespace) -> int:
    """Every stage in order, each only if there is still time for it; 3: to be called again."""
    ends = time.monotonic() + 60 * options.minutes
    stages: list[tuple[Callable[[argparse.Namespace], None], float, argparse.Namespace]] = [
        (export, 0.5, options),
        (grow, 2, options),
        (evaluate, 8, options),
        (path, 4, options),
    ]
    for name in options.real:
        given = {**vars(options), "shape": grow_model.SHAPES[name], "name": name}
        given["concurrency"] = options.shape_concurrency
        stages.append((shapes, 3 + 2 * options.repeats, argparse.Namespace(**given)))
    for stage, minutes, its in stages:
        title = f"shapes {its.name}" if stage is shapes else stage.__name__
        if not _finished(stage, its) and time.monotonic() + 60 * minutes > ends:
            print(f"no time left for {title} (about {minutes:g} minutes): call again to go on")
            return 3
        print(f"--- {title}", flush=True)
        stage(its)
    report(options)
    return 0


def _finished(stage: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> bool:
    work: Path = options.work
    if stage is shapes:
        return not _settings_left(options, _shape_kept(options))
    if stage is evaluate:
        return "report" in Kept(work / "evaluate.json").parts
    if stage is path:
        return (work / "path.json").is_file()
    folder = work / ("pair" if stage is export else "grown")
    return all((folder / role / "config.json").is_file() for role in ROLES)


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    python = getattr(options, "vllm_python", None)
    return {
        "gpus": gpus(),
        "host": host(),
        "versions": {
            **versions(),
            **({"vllm": package_version(python, "vllm")} if python else {}),
        },
        "command": shlex.join(["scripts/bench_gpu.py", *sys.argv[1:]]),
    }


def recorded_counts(text: str) -> list[int]:
    """Numbers of examples for which there are decisions, and 0, with commas between them."""
    if not set(text.split(",")) <= set(ALL_COUNTS.split(",")):
        raise argparse.ArgumentTypeError(f"expected some of {ALL_COUNTS}, got {text!r}")
    return numbers(text)


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work", type=Path, default=ROOT / "build" / "gpu", help="everything that is written"
    )
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--vllm-python", type=Path, help="interpreter that has vLLM")
    engine.add_argument(
        "--set", type=option, action="append", default=[], metavar="KEY=VALUE",
        help="an option of the engine; may be repeated",
    )  # fmt: skip
    growing = argparse.ArgumentParser(add_help=False)
    for role in ROLES:
        growing.add_argument(
            f"--{role}-shape", type=grow_model.parse_shape, default=SHAPES[role], metavar="SHAPE",
            help=f"one of {', '.join(grow_model.SHAPES)}, with changes such as 14b,kv_heads=20",
        )  # fmt: skip
    served = argparse.ArgumentParser(add_help=False)
    served.add_argument("--profile", default="vllm", help="vllm, or local: no GPU")
    served.add_argument("--embedder", choices=("cuda", "fast", "fp32"), help="default: cuda")
    served.add_argument("--processes", type=int, default=4, help="of router and retriever")
    for role in ROLES:
        served.add_argument(f"--{role}", type=Path, help="checkpoint; default: the grown one")
        served.add_argument(f"--{role}-memory", type=float, help="share of the GPU's memory")
        served.add_argument(
            f"--{role}-set", type=option, action="append", default=[], metavar="KEY=VALUE"
        )
    comparing = argparse.ArgumentParser(add_help=False)
    comparing.add_argument("--history", type=int, default=HISTORY, help="past answers stored")
    comparing.add_argument("--learning", type=int, default=1_000)
    comparing.add_argument("--rated", type=float, default=0.2)
    comparing.add_argument("--requests", type=int, default=2_000, help="for each policy")
    comparing.add_argument("--labelled", type=int, default=400, help="for the static router")
    comparing.add_argument("--stage-seconds", type=float, default=60.0)
    comparing.add_argument("--latency-seconds", type=float, default=20.0)
    comparing.add_argument(
        "--concurrency", type=int, default=512,
        help="at saturation; more than the engines take at once (256), or no load bias acts",
    )  # fmt: skip
    comparing.add_argument("--seed", type=int, default=1)
    pathing = argparse.ArgumentParser(add_help=False)
    pathing.add_argument("--examples", type=int, default=100_000)
    pathing.add_argument("--path-concurrency", type=int, default=64)
    pathing.add_argument("--path-requests", type=int, default=20_000)
    pathing.add_argument("--rate", type=float, default=1_500.0, help="a second, second measurement")
    shaping = argparse.ArgumentParser(add_help=False)
    shaping.add_argument("--seconds", type=float, default=12.0, help="most for each setting")
    shaping.add_argument("--max-tokens", type=int, default=OUTPUT_TOKENS)
    shaping.add_argument(
        "--warm-up", type=int, default=RECORDED - MEASURED,
        help="recorded requests that fill the prefix cache before each setting",
    )  # fmt: skip
    shaping.add_argument("--vocabulary", type=int, default=VOCABULARY)
    shaping.add_argument(
        "--counts", type=recorded_counts, default=ALL_COUNTS, metavar="N[,N…]",
        help="of examples; default: %(default)s",
    )  # fmt: skip
    shaping.add_argument("--repeats", type=at_least_one, default=1, help="of each setting")

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("train", parents=[common], help="train one LLM of a pair")
    one.add_argument("role", choices=ROLES)
    one.add_argument("--python", type=Path, default=Path(sys.executable), help="that has torch")
    one.add_argument("--arguments", help="for train_pair.py, in place of this script's")
    one.set_defaults(func=train)
    commands.add_parser("export", parents=[common], help="the shipped pair").set_defaults(
        func=export
    )
    one = commands.add_parser(
        "past", parents=[common, engine], help="more answers of the pair's large LLM to store"
    )
    one.add_argument("--count", type=int, default=12_000)
    one.set_defaults(func=past)
    commands.add_parser("grow", parents=[common, growing], help="to real sizes").set_defaults(
        func=grow
    )
    commands.add_parser(
        "evaluate", parents=[common, engine, served, comparing], help="all policies"
    ).set_defaults(func=evaluate)
    one = commands.add_parser(
        "shapes", parents=[common, engine, shaping], help="random weights of a real size"
    )
    one.add_argument("shape", type=grow_model.parse_shape)
    one.add_argument("--name", help="of the result; default: the shape's numbers")
    one.add_argument("--concurrency", type=numbers, default=[16, 128], metavar="N[,N…]")
    one.set_defaults(func=shapes)
    commands.add_parser(
        "path", parents=[common, engine, served, pathing], help="all but the LLMs"
    ).set_defaults(func=path)
    one = commands.add_parser("record", help="decisions for `shapes`")
    one.add_argument("--output", type=Path, default=DECISIONS)
    one.set_defaults(func=record)
    commands.add_parser("report", parents=[common], help="tables and plots").set_defaults(
        func=report
    )
    one = commands.add_parser(
        "all",
        parents=[common, engine, growing, served, comparing, pathing, shaping],
        help="all but training",
    )
    one.add_argument("--minutes", type=float, default=1e9, help="begins nothing that takes longer")
    one.add_argument("--real", type=lambda text: text.split(","), default=["3b", "32b"])
    one.add_argument("--shape-concurrency", type=numbers, default=[16, 128], metavar="N[,N…]")
    one.set_defaults(func=all_stages)
    return parser.parse_args(argv)


def main() -> int:
    options = parse_arguments()
    try:
        return int(options.func(options) or 0)
    except subprocess.CalledProcessError as error:
        print(f"bench_gpu: {shlex.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
    except EchoError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
