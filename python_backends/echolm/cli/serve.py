"""``echolm serve``: run EchoLM on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from echolm_client.cli.arguments import Subparsers, add_verb, not_empty, port, seconds

from echolm.cli.data_directory import add_options, configuration_file, settings_from


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "serve",
        help="run EchoLM on this machine",
        description="Run EchoLM on this machine, in the foreground: Triton with the model "
        "repository, Milvus Lite unless the configuration names a Milvus server, and the gateway "
        "with OpenAI's API unless gateway.enabled is false. Ctrl-C or SIGTERM stops everything; a "
        "second time: at once.",
    )
    parser.add_argument(
        "--profile", default="local", help="which LLM engines serve (default: %(default)s)"
    )
    add_options(parser)
    parser.add_argument(
        "--host",
        type=not_empty,
        default="127.0.0.1",
        help="address on which Triton listens (default: %(default)s); the gateway's is "
        "gateway.host in the configuration",
    )
    parser.add_argument(
        "--metrics-host",
        type=not_empty,
        metavar="HOST",
        help="address of the metrics and of /health/ready and /health/live (default: --host)",
    )
    for name, number in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port",
            type=port,
            default=number,
            metavar="PORT",
            help="0: a free one (default: %(default)s)",
        )
    parser.add_argument(
        "--gateway-port",
        type=port,
        metavar="PORT",
        help="0: a free one (default: gateway.port of the configuration, 9000)",
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="more models; may be given several times",
    )
    parser.add_argument(
        "--repository-root",
        type=Path,
        metavar="DIR",
        help="directory of core and the profiles (default: the folder of --config, if `echolm "
        "build` wrote it; else model_repository of this checkout)",
    )
    parser.add_argument(
        "--ready-timeout",
        type=seconds,
        metavar="S",
        help="seconds for the models to load (default: 300; on GPUs 1800)",
    )
    parser.add_argument("--verbose", action="store_true", help="show Triton's log")
    parser.add_argument(
        "triton",
        nargs="*",
        metavar="-- OPTION",
        help="behind two dashes, more options for tritonserver, such as --rate-limit=off",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit code."""
    from echolm.serving import ServeOptions, serve_forever
    from echolm.serving.build import built_root

    settings = settings_from(args, must_exist=False)
    root = args.repository_root or built_root(configuration_file(args), args.profile)
    gateway = settings.gateway
    gateway_port = gateway.port if args.gateway_port is None else args.gateway_port
    options = ServeOptions(
        profile=args.profile,
        repository_root=root,
        model_repositories=tuple(args.model_repository),
        host=args.host,
        metrics_host=args.metrics_host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        gateway_port=gateway_port if gateway.enabled else None,
        ready_timeout_s=args.ready_timeout,
        verbose=args.verbose,
        triton_args=tuple(args.triton),
    )
    return serve_forever(settings, options)
