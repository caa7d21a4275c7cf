"""The command ``echolm``: ``serve``, ``examples``, and what the client adds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from echolm.errors import ConfigurationError, EchoError
from echolm.examples.cli import add_replay
from echolm.examples.cli import add_subcommands as add_examples

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
    add_examples(subparsers)
    add_replay(subparsers)
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
        help="directory of core and the profiles (default: model_repository of this checkout)",
    )
    serve.add_argument(
        "--ready-timeout", type=_seconds, default=300.0, help="seconds for the models to load"
    )
    serve.add_argument("--verbose", action="store_true", help="show Triton's log")
    serve.set_defaults(func=_serve)


def _serve(args: argparse.Namespace) -> int:
    # Here, so that the client's subcommands start without the server's packages.
    from echolm.serving import ServeOptions, serve_forever
    from echolm.settings import load_settings

    settings = load_settings(getattr(args, "config", None))
    if hasattr(args, "data_dir"):
        settings = settings.model_copy(update={"data_dir": args.data_dir})
    options = ServeOptions(
        profile=args.profile,
        repository_root=getattr(args, "repository_root", None),
        model_repositories=tuple(args.model_repository),
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        ready_timeout_s=args.ready_timeout,
        verbose=args.verbose,
    )
    return serve_forever(settings, options)


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
