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
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from echolm.errors import EchoError
from echolm_lab.experiments.arguments import at_least_one, numbers, option
from echolm_lab.experiments.gpu.common import HISTORY, ROLES, ROOT
from echolm_lab.experiments.gpu.decisions import COUNTS, DECISIONS, RECORDED, record
from echolm_lab.experiments.gpu.evaluation import evaluate
from echolm_lab.experiments.gpu.pair import export, grow, past, train
from echolm_lab.experiments.gpu.shapes import MEASURED, shapes
from echolm_lab.experiments.gpu.stages import all_stages, path, report
from echolm_lab.models.checkpoints import VOCABULARY
from echolm_lab.models.grow import SHAPES, parse_shape

ALL_COUNTS = ",".join(map(str, (0, *COUNTS)))
GROWN = {"small": "1.5b", "large": "14b,kv_heads=20"}
"""The shipped large LLM has 12 key and value heads, more than a 14 B model's 8."""
OUTPUT_TOKENS = 88
"""Tokens of an answer in scripts/past.jsonl, on average."""


def recorded_counts(text: str) -> list[int]:
    """Numbers of examples for which there are decisions, and 0, with commas between them."""
    if not set(text.split(",")) <= set(ALL_COUNTS.split(",")):
        raise argparse.ArgumentTypeError(f"expected some of {ALL_COUNTS}, got {text!r}")
    return numbers(text)


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
            f"--{role}-shape", type=parse_shape, default=GROWN[role], metavar="SHAPE",
            help=f"one of {', '.join(SHAPES)}, with changes such as 14b,kv_heads=20",
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
    comparing.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="CSV of arrivals, as evaluate.py takes it: all policies under it as well",
    )  # fmt: skip
    comparing.add_argument("--trace-seconds", type=float, default=60.0, help="of it, each policy")
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
    command = commands.add_parser("train", parents=[common], help="train one LLM of a pair")
    command.add_argument("role", choices=ROLES)
    command.add_argument("--python", type=Path, default=Path(sys.executable), help="that has torch")
    command.add_argument("--arguments", help="for train_pair.py, in place of this script's")
    command.set_defaults(func=train)
    commands.add_parser("export", parents=[common], help="the shipped pair").set_defaults(
        func=export
    )
    command = commands.add_parser(
        "past", parents=[common, engine], help="more answers of the pair's large LLM to store"
    )
    command.add_argument("--count", type=int, default=12_000)
    command.set_defaults(func=past)
    commands.add_parser("grow", parents=[common, growing], help="to real sizes").set_defaults(
        func=grow
    )
    commands.add_parser(
        "evaluate", parents=[common, engine, served, comparing], help="all policies"
    ).set_defaults(func=evaluate)
    command = commands.add_parser(
        "shapes", parents=[common, engine, shaping], help="random weights of a real size"
    )
    command.add_argument("shape", type=parse_shape)
    command.add_argument("--name", help="of the result; default: the shape's numbers")
    command.add_argument("--concurrency", type=numbers, default=[16, 128], metavar="N[,N…]")
    command.set_defaults(func=shapes)
    commands.add_parser(
        "path", parents=[common, engine, served, pathing], help="all but the LLMs"
    ).set_defaults(func=path)
    command = commands.add_parser("record", help="decisions for `shapes`")
    command.add_argument("--output", type=Path, default=DECISIONS)
    command.set_defaults(func=record)
    commands.add_parser("report", parents=[common], help="tables and plots").set_defaults(
        func=report
    )
    command = commands.add_parser(
        "all",
        parents=[common, engine, growing, served, comparing, pathing, shaping],
        help="all but training",
    )
    command.add_argument(
        "--minutes", type=float, default=1e9, help="begins nothing that takes longer"
    )
    command.add_argument("--real", type=lambda text: text.split(","), default=["3b", "32b"])
    command.add_argument("--shape-concurrency", type=numbers, default=[16, 128], metavar="N[,N…]")
    command.set_defaults(func=all_stages)
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
