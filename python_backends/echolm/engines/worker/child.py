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
from typing import Any

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
    parser.add_argument("--mode", choices=list(_RUN), required=True, help="kind of engine")
    parser.add_argument("--factory", required=True, help="module:function that makes the engine")
    parser.add_argument("--arguments", type=json.loads, required=True, help="its arguments as JSON")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by this")
    options = parser.parse_args()
    # The caller decides when to end, by closing the socket: a signal to the whole process group
    # must not take the engine away while the server still answers what is in flight.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(options.nice)
    status = _work(Connection(options.fd), options.mode, options.factory, options.arguments)
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
        failed = None if reason is None else Failed(reason)
    except ImportError as error:
        failed = Failed(f"engine: expected its packages installed, got: {error}", True)
    except EchoError as error:
        logger.error("engine: cannot load the model")
        failed = Failed(str(error), isinstance(error, ConfigurationError))
    except Exception as error:
        logger.exception("engine: cannot load the model")
        failed = Failed(f"{type(error).__name__}: {error}")
    if failed is None:
        return 0
    with contextlib.suppress(OSError):
        connection.send(failed)
    return 1
