"""Command lines for a running server: ``ask``, ``rate``, ``prefer`` and ``stats``, one file a verb.

A verb's file has ``add_subcommand``, which describes its arguments, and ``run``, which does the
work and returns one of the :mod:`~echolm_client.cli.exit_codes`. The console script that assembles
the verbs runs the chosen one by :func:`echolm_client.cli.console.guarded`.
"""

from __future__ import annotations

from echolm_client._client import Client
from echolm_client.cli import ask, prefer, rate, stats
from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.connection import OpenClient


def add_subcommands(subparsers: Subparsers, open_client: OpenClient = Client) -> None:
    """Add the verbs; each sets ``func``, to be called with the parsed arguments.

    Args:
        open_client: replaces :class:`Client`, for tests.
    """
    for verb in (ask, rate, prefer, stats):
        verb.add_subcommand(subparsers).set_defaults(open_client=open_client)
