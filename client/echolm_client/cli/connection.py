"""The options of a connection, and a client made of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from echolm_client._client import Client
from echolm_client._config import DEFAULT_TIMEOUT_S, DEFAULT_URL
from echolm_client._errors import Unavailable
from echolm_client.cli.arguments import seconds
from echolm_client.cli.console import CommandError

OpenClient = Callable[..., Client]
"""Makes a client; takes the arguments of :class:`Client`."""


def add_connection(parser: argparse.ArgumentParser, default_url: str | None = DEFAULT_URL) -> None:
    """Add ``--url`` and ``--timeout``.

    Args:
        default_url: None: that of the remembered answer.
    """
    shown = default_url or "the answer's"
    parser.add_argument(
        "--url",
        default=default_url,
        help=f"server, [grpc|grpcs|http|https://]host[:port] (default: {shown})",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="give up when the whole answer is not there after this many seconds "
        "(default: %(default)g)",
    )


@contextmanager
def connected(
    args: argparse.Namespace, url: str | None = None, see: str = "--url", **options: Any
) -> Iterator[Client]:
    """The client that the options ask for.

    Args:
        url: of the server; None: ``--url``.
        see: the option that is likely to be wrong where nobody answers.
        options: more arguments of :class:`Client`.

    Raises:
        CommandError: an address is none.
        Unavailable: what the caller does with the client raised it; the message says where.
    """
    url = url or args.url
    try:
        client = args.open_client(url, timeout=args.timeout, **options)
    except ValueError as error:
        raise CommandError(str(error)) from error
    with client:
        try:
            yield client
        except Unavailable as error:
            raise Unavailable(
                f"{error} (asked {url}; is the server running? see {see})",
                error.status,
                error.code,
            ) from error
