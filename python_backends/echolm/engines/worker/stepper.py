"""The worker's loop for an engine that generates only while it is stepped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from echolm.engines.base import GenerationRequest
from echolm.engines.worker.messages import Event, Events
from echolm.errors import EchoError

logger = logging.getLogger("echolm")


class Stepper(Protocol):
    """An engine that generates only while :meth:`step` runs. Used from one thread."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to step for."""

    def add(self, request: GenerationRequest) -> None:
        """Take a request; raises an :class:`EchoError` that fails only this request."""

    def cancel(self, request_id: str) -> Event | None:
        """Drop a request; gives its last event, or None if it is not in flight."""

    def step(self) -> list[Event]:
        """Generate one token for each request that is scheduled; gives what is new."""

    def prefix_hit_tokens(self) -> int | None:
        """As in :class:`~echolm.engines.base.EngineStats`."""


def run(
    make: Callable[[], Stepper], connection: Connection, ready: Callable[[], None]
) -> str | None:
    """Make the stepper and serve; as :data:`~echolm.engines.worker.child.Run` describes it."""
    stepper = make()
    ready()
    try:
        _serve(connection, stepper)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # The other side has closed.
    except Exception as error:
        logger.exception("engine: a step failed")
        return f"a step failed: {type(error).__name__}: {error}"
    return None


def _serve(connection: Connection, stepper: Stepper) -> None:
    """Take what has come, step, send what is new; an EOFError or OSError ends it."""
    while True:
        events: list[Event] = []
        # Sleep in poll() while there is nothing to do: a message wakes it at once.
        while connection.poll(0 if stepper.busy or events else None):
            for item in connection.recv():
                if isinstance(item, GenerationRequest):
                    try:
                        stepper.add(item)
                    except EchoError as problem:
                        events.append((item.request_id, problem))
                elif (event := stepper.cancel(item)) is not None:
                    events.append(event)
        if stepper.busy:
            events += stepper.step()
        if events:
            connection.send(Events(events, stepper.prefix_hit_tokens()))
