"""``echolm build``: write a model repository for LLMs of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from echolm_client.cli.arguments import Subparsers, add_verb, key_value
from echolm_client.cli.console import note, write
from echolm_client.cli.exit_codes import OK

DEFAULT_OUTPUT = "~/.local/share/echolm-models"
"""Outside of the data directory, which others may not read."""


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "build",
        help="write a model repository for LLMs of your own",
        description="Check two LLMs and write a model repository and an echolm.toml that `echolm "
        "serve` and Triton take. For the CPU (--profile local), a checkpoint or a GGUF file that "
        "OpenVINO does not read is converted, in an environment that is made once in "
        "~/.cache/echolm. GPUs that both LLMs are on are shared by memory.",
        epilog="Options of the engines (--set): OpenVINOOptions in engines/openvino.py, "
        "VLLMOptions in engines/vllm.py, TensorRTLLMOptions in engines/tensorrt_llm.py; for "
        "example --set python=/opt/vllm/bin/python --large-set quantization=fp8.",
    )
    parser.add_argument("--profile", required=True, help="local, vllm or tensorrt_llm")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder to write (default: {DEFAULT_OUTPUT}/PROFILE)",
    )
    for role in ("small", "large"):
        _add_llm(parser, role)
    _add_set(parser, "--set", "both engines")
    parser.add_argument(
        "--embedder",
        choices=("cuda", "fast", "fp32"),
        help="how the embedding model runs with vllm (default: cuda, if this environment's ONNX "
        "Runtime has it, else fast: on the CPU); with tensorrt_llm Triton's backend runs it",
    )
    parser.add_argument(
        "--weights",
        choices=("int8", "int4"),
        default="int8",
        help="format of the weights of what is converted for the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--converter",
        type=Path,
        metavar="PYTHON",
        help="interpreter of an environment that converts for the CPU (default: one is made)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="retriever processes (default: 1); about one for every four cores",
    )
    parser.add_argument(
        "--repository-root",
        type=Path,
        metavar="DIR",
        help="directory of core and the profiles (default: model_repository of this checkout)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier build")
    parser.set_defaults(func=run)


def _add_llm(parser: argparse.ArgumentParser, role: str) -> None:
    group = parser.add_argument_group(f"the {role} LLM")
    group.add_argument(
        f"--{role}",
        required=True,
        metavar="MODEL",
        help="folder of a Hugging Face checkpoint, or its name on the hub; with local also a GGUF "
        "file or an OpenVINO folder, with tensorrt_llm a built engine",
    )
    group.add_argument(
        f"--{role}-tokenizer", type=Path, metavar="DIR", help="folder of another tokenizer"
    )
    group.add_argument(f"--{role}-gpus", metavar="0,1", help="numbers of its GPUs (default: 0)")
    group.add_argument(
        f"--{role}-memory",
        type=float,
        metavar="SHARE",
        help="share of each GPU's memory (default: 0.9; on the same GPU small 0.3, large 0.6)",
    )
    group.add_argument(
        f"--{role}-context",
        type=int,
        metavar="TOKENS",
        help="prompt and answer together (default: what the model can, at most 8192)",
    )
    group.add_argument(
        f"--{role}-template",
        default="",
        metavar="NAME",
        help="chat template: a folder, a .jinja file, echolm, chatml or plain (default: the "
        "tokenizer's)",
    )
    _add_set(group, f"--{role}-set", "the engine")


def _add_set(group: argparse._ActionsContainer, name: str, whose: str) -> None:
    text = f"an option of {whose}; may be given several times"
    group.add_argument(
        name, action="append", default=[], type=key_value, metavar="KEY=VALUE", help=text
    )


def run(args: argparse.Namespace) -> int:
    """Write the repository; returns the exit code."""
    from echolm.serving.build import BuildOptions, LLMChoice, build

    def choice(role: str) -> LLMChoice:
        return LLMChoice(
            model=getattr(args, role),
            tokenizer=getattr(args, f"{role}_tokenizer"),
            gpus=getattr(args, f"{role}_gpus"),
            memory=getattr(args, f"{role}_memory"),
            context=getattr(args, f"{role}_context"),
            template=getattr(args, f"{role}_template"),
            options=dict([*args.set, *getattr(args, f"{role}_set")]),
        )

    options = BuildOptions(
        profile=args.profile,
        llms={role: choice(role) for role in ("small", "large")},
        output=args.output or Path(DEFAULT_OUTPUT) / args.profile,
        embedder=args.embedder,
        processes=args.processes,
        repository_root=args.repository_root,
        weights=args.weights,
        converter=args.converter,
        force=args.force,
    )
    written = build(options, lambda message: note(f"echolm build: {message}"))
    write(f"Written: {written}\n")
    write(f"Serve it:\n  echolm serve --profile {args.profile} --config {written}\n")
    return OK
