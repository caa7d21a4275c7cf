"""No peer at all: what the dummy LLM and the load generator can do by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.clients import chat


class Direct:
    """The load generator calls the dummy LLM."""

    name = "direct"
    version = ""
    licence = ""
    does = "nothing: the load generator calls the dummy LLM, the most that this machine allows"

    def install(self, bench: Bench) -> None:
        pass

    @contextlib.contextmanager
    def running(self, bench: Bench) -> Iterator[Running]:
        yield Running({self.name: chat(bench.llm_port)}, {})
