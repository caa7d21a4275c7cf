"""The worker process: its entry, which makes the engine and serves it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, get_args

from echolm.engines.worker import asynchronous, stepper
from echolm.engines.worker.messages import Failed, Mode, Ready
from echolm.errors import ConfigurationError, EchoError

logger = logging.getLogger("echolm")

Run = Callable[[Callable[[], Any], Connection, Callable[[], None]], "str | None"]
"""Makes an engine and serves it until the other side has closed. It takes what gives the engine
with its model loaded, or raises what is wrong with it; the connection; and what it calls once the
model is loaded. It gives why the engine has failed; None if it has not."""
_RUN: Mapping[Mode, Run] = {"stepper": stepper.run, "async": asynchronous.run}


def main() -> int:
    """Entry of the worker process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the engine's caller")
    parser.add_argument("--mode", choices=get_args(Mode), required=True, help="kind of engine")
    parser.add_argument("--factory", required=True, help="module:function that makes the engine")
    parser.add_argument("--arguments", required=True, help="its keyword arguments as JSON")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by this")
    options = parser.parse_args()
    # The caller decides when to end, by closing the socket: a signal to the whole process group
    # must not take the engine away while the server still answers what is in flight.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if options.nice:
        os.nice(options.nice)
    connection = Connection(options.fd)
    status = _work(connection, options.mode, options.factory, json.loads(options.arguments))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking a pipeline down piece by piece takes time and complains about what is in flight.
    os._exit(status)


def _work(connection: Connection, mode: Mode, factory: str, arguments: Mapping[str, Any]) -> int:
    """Make the engine and serve until the other side has closed; gives the exit status."""
    module, _, function = factory.partition(":")
    try:
        make = partial(getattr(import_module(module), function), **arguments)
        reason = _RUN[mode](make, connection, partial(connection.send, Ready()))
    except ImportError as error:
        return _fail(connection, f"engine: expected its packages installed, got: {error}", True)
    except Exception as error:
        known = isinstance(error, EchoError)
        logger.error("engine: cannot load the model", exc_info=None if known else error)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return _fail(connection, text, isinstance(error, ConfigurationError))
    return 0 if reason is None else _fail(connection, reason, False)


def _fail(connection: Connection, message: str, configuration: bool) -> int:
    with contextlib.suppress(OSError):
        connection.send(Failed(message, configuration))
    return 1
