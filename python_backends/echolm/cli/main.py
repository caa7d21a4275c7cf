"""The command ``echolm``: ``serve``, ``build``, ``examples``, and what the client adds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from echolm.cli.estimate import add_subcommand as add_estimate
from echolm.cli.examples import add_replay
from echolm.cli.examples import add_subcommands as add_examples
from echolm.errors import ConfigurationError, EchoError

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.func(args) or 0)
    except ConfigurationError as error:
        print(f"echolm {args.command}: {error}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    except EchoError as error:
        print(f"echolm {args.command}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each subcommand sets ``func``."""
    parser = argparse.ArgumentParser(
        prog="echolm",
        description="Serve one logical LLM that learns when its small LLM will do.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(subparsers)
    _add_build(subparsers)
    add_examples(subparsers)
    add_replay(subparsers)
    add_estimate(subparsers)
    try:
        from echolm_client.cli import add_subcommands
    except ModuleNotFoundError as error:
        # A server may be installed without the client; anything else that is missing is an error.
        if not (error.name or "").startswith("echolm_client"):
            raise
    else:
        add_subcommands(subparsers)
    return parser


def _add_serve(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = subparsers.add_parser(
        "serve",
        help="run EchoLM on this machine",
        description="Run EchoLM on this machine, in the foreground: Triton with the model "
        "repository, and Milvus Lite unless the configuration names a Milvus server. Ctrl-C or "
        "SIGTERM stops everything; a second time: at once.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument("--profile", default="local", help="which LLM engines serve")
    serve.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        help="echolm.toml (default: $ECHOLM_CONFIG, else built-in values)",
    )
    serve.add_argument(
        "--data-dir",
        type=Path,
        default=argparse.SUPPRESS,
        help="everything the server writes (default: data_dir of the configuration)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--http-port", type=_port, default=8000, help="0: a free one")
    serve.add_argument("--grpc-port", type=_port, default=8001, help="0: a free one")
    serve.add_argument("--metrics-port", type=_port, default=8002, help="0: a free one")
    serve.add_argument(
        "--model-repository",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="more models; may be given several times",
    )
    serve.add_argument(
        "--repository-root",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="directory of core and the profiles (default: the folder of --config, if `echolm "
        "build` wrote it; else model_repository of this checkout)",
    )
    serve.add_argument(
        "--ready-timeout",
        type=_seconds,
        default=argparse.SUPPRESS,
        help="seconds for the models to load (default: 300; on GPUs 1800)",
    )
    serve.add_argument("--verbose", action="store_true", help="show Triton's log")
    serve.set_defaults(func=_serve)


def _serve(args: argparse.Namespace) -> int:
    # Here, so that the client's subcommands start without the server's packages.
    from echolm.serving import ServeOptions, serve_forever
    from echolm.serving.build import built_root
    from echolm.settings import ENV_CONFIG
    from echolm.settings.loading import load_settings

    named = getattr(args, "config", None) or os.environ.get(ENV_CONFIG)
    config = Path(named) if named else None
    settings = load_settings(config)
    if hasattr(args, "data_dir"):
        settings = settings.model_copy(update={"data_dir": args.data_dir})
    options = ServeOptions(
        profile=args.profile,
        repository_root=getattr(args, "repository_root", None) or built_root(config, args.profile),
        model_repositories=tuple(args.model_repository),
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        ready_timeout_s=getattr(args, "ready_timeout", None),
        verbose=args.verbose,
    )
    return serve_forever(settings, options)


def _add_build(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = subparsers.add_parser(
        "build",
        help="write a model repository for LLMs on NVIDIA GPUs",
        description="Check two checkpoints and write a model repository and an echolm.toml that "
        "`echolm serve` and Triton take. GPUs that both LLMs are on are shared by memory.",
        epilog="Options of the engines (--set): VLLMOptions in engines/vllm.py, TensorRTLLMOptions "
        "in engines/tensorrt_llm.py; for example --set python=/opt/vllm/bin/python "
        "--large-set quantization=fp8.",
    )
    build.add_argument("--profile", required=True, help="vllm or tensorrt_llm")
    build.add_argument("--output", type=Path, metavar="DIR", help="default: build/PROFILE")
    for role in ("small", "large"):
        group = build.add_argument_group(f"the {role} LLM")
        group.add_argument(
            f"--{role}",
            type=Path,
            required=True,
            metavar="MODEL",
            help="folder of a Hugging Face checkpoint, or (tensorrt_llm) of a built engine",
        )
        group.add_argument(
            f"--{role}-tokenizer", type=Path, metavar="DIR", help="folder of another tokenizer"
        )
        group.add_argument(f"--{role}-gpus", default="0", metavar="0,1", help="default: 0")
        group.add_argument(
            f"--{role}-memory",
            type=float,
            metavar="SHARE",
            help="of each GPU's memory (default: 0.9; on the same GPU small 0.3, large 0.6)",
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
            help="prompt template (default: by the tokenizer)",
        )
        group.add_argument(
            f"--{role}-set",
            action="append",
            default=[],
            type=_assignment,
            metavar="KEY=VALUE",
            help="an option of the engine; may be given several times",
        )
    build.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="an option of both engines",
    )
    build.add_argument(
        "--embedder",
        choices=("cuda", "fast", "fp32"),
        help="how the embedding model runs with vllm (default: cuda, if this environment's ONNX "
        "Runtime has it, else fast: on the CPU); with tensorrt_llm Triton's backend runs it",
    )
    build.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="router and retriever processes (default: 1); about one for every four cores",
    )
    build.add_argument(
        "--repository-root",
        type=Path,
        metavar="DIR",
        help="directory of core and the profiles (default: model_repository of this checkout)",
    )
    build.add_argument("--force", action="store_true", help="replace an earlier build")
    build.set_defaults(func=_build)


def _build(args: argparse.Namespace) -> int:
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
        output=args.output or Path("build") / args.profile,
        embedder=args.embedder,
        processes=args.processes,
        repository_root=args.repository_root,
        force=args.force,
    )
    written = build(options, lambda message: print(f"echolm build: {message}", file=sys.stderr))
    print(f"Written: {written}")
    print(f"Serve it:\n  echolm serve --profile {args.profile} --config {written}")
    return 0


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port (0 to 65535), got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
