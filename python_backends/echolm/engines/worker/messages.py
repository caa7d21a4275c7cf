"""What goes over the socket between an engine's caller and its worker process.

The caller sends lists of :class:`~echolm.engines.base.GenerationRequest` and of the ids of
requests to cancel; the worker sends the messages of this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from echolm.engines.base import GenerationChunk

Mode = Literal["stepper", "async"]
"""What the worker's factory makes: a :class:`~echolm.engines.worker.stepper.Stepper`; or, as a
coroutine function, an :class:`~echolm.engines.worker.asynchronous.AsyncBackend`."""

Event = tuple[str, "GenerationChunk | Exception"]
"""A request's id and what its ``on_chunk`` gets."""


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its model."""


@dataclass(frozen=True)
class Failed:
    """The worker cannot load its model, or has failed and ends."""

    message: str
    configuration: bool = False  # whether it is to blame, which decides the class of the error


@dataclass(frozen=True)
class Events:
    """What has happened to the worker's requests."""

    events: list[Event]
    prefix_hit_tokens: int | None  # as in :class:`~echolm.engines.base.EngineStats`
