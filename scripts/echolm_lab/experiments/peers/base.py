"""What a peer is: something that installs, runs and is sent requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from echolm_lab.experiments.peers.processes import ProcessTree
from echolm_lab.policies.base import AnswerPolicy

Progress = Callable[[str], None]
Connect = Callable[[], contextlib.AbstractAsyncContextManager[AnswerPolicy]]
"""Opens a client; what it sends is answered by the peer."""


@dataclass(frozen=True)
class Bench:
    """What all peers of one run share.

    Attributes:
        directory: for what outlives the run: environments, EchoLM's store.
        work: of this run alone, for configurations and logs.
        llm_port: the dummy LLM, OpenAI-compatible.
        embedding_port: the embedder, OpenAI-compatible.
        embedding: the embedder's processes; they count for the peer that calls them.
        workers: processes of a peer that can run as several.
        examples: in EchoLM's store.
        admit: whether EchoLM stores answers, too, as the caches do.
    """

    directory: Path
    work: Path
    llm_port: int
    embedding_port: int
    embedding: ProcessTree
    workers: int
    examples: int
    admit: bool
    progress: Progress

    @property
    def llm_url(self) -> str:
        """Base URL as OpenAI's clients want it."""
        return f"http://127.0.0.1:{self.llm_port}/v1"

    @property
    def embedding_url(self) -> str:
        """Base URL as OpenAI's clients want it."""
        return f"http://127.0.0.1:{self.embedding_port}/v1"


@dataclass(frozen=True)
class Running:
    """A peer that takes requests.

    Attributes:
        fronts: clients by the name of the row they measure; most peers have one.
        parts: the processes whose time and memory are the peer's, by what they are.
        own_llm: whether its dummy LLM is not the one that the bench starts.
    """

    fronts: Mapping[str, Connect]
    parts: Mapping[str, ProcessTree]
    own_llm: bool = False


class Peer(Protocol):
    """One way to stand in front of LLMs.

    Attributes:
        name: on the command line and in the table.
        version, licence: of what is installed.
        does: what it does with a request, in the time that is measured.
    """

    name: str
    version: str
    licence: str
    does: str

    def install(self, bench: Bench) -> None:
        """Make it ready to start; it is quick if it is.

        Raises:
            PeerUnavailableError: it is not to be had here.
        """
        ...

    def running(self, bench: Bench) -> contextlib.AbstractContextManager[Running]:
        """The peer, as long as the context lasts.

        Raises:
            PeerUnavailableError: it does not start.
        """
        ...
