"""EchoLM's front door, with LLMs that answer at once."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from echolm import contracts
from echolm.errors import EchoError
from echolm.serving.serve import ServeOptions, prepare_embedder, running_server
from echolm.settings import Settings

from echolm_lab.experiments.path import dummy_repository, full_store, wait_for_statistics
from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.clients import generate, infer
from echolm_lab.experiments.peers.errors import PeerUnavailableError
from echolm_lab.experiments.peers.llm_server import ANSWER
from echolm_lab.experiments.peers.processes import ProcessTree
from echolm_lab.experiments.store import fill
from echolm_lab.tasks import Workload

_CORE = Path(__file__).resolve().parents[4] / "model_repository" / "core"
_LLMS = ("small_llm", "large_llm")


class EchoLM:
    """Triton with the core models over gRPC, and over HTTP with the generate extension."""

    name = "echolm"
    version = metadata.version("echolm")
    licence = "Apache-2.0"
    does = (
        "embeds, searches its store of examples in Milvus Lite, selects examples, chooses the LLM "
        "and writes its prompt; admits answers only with --admit"
    )

    def install(self, bench: Bench) -> None:
        settings = self._settings(bench)
        prepare_embedder(settings, bench.progress)
        filled = settings.data_dir / "filled"
        if filled.exists():
            return
        shutil.rmtree(settings.data_dir, ignore_errors=True)
        settings.data_dir.mkdir(parents=True)
        bench.progress(f"storing {bench.examples} examples in {settings.data_dir} (once)")
        items = Workload(seed=0).stream(bench.examples, seed=0, phase="past")
        stored = 0

        def on_stored(count: int) -> None:
            nonlocal stored
            tenths = 10 * stored // len(items)
            stored += count
            if 10 * stored // len(items) > tenths:
                bench.progress(f"stored {stored}")

        fill(settings, [(item.text, item.answer) for item in items], on_stored)
        filled.touch()

    @contextlib.contextmanager
    def running(self, bench: Bench) -> Iterator[Running]:
        models = dummy_repository(bench.work / "models")
        for llm in _LLMS:
            with (models / llm / "config.pbtxt").open("a", encoding="utf-8") as config:
                config.write(
                    f'parameters {{ key: "text" value: {{ string_value: "{ANSWER}" }} }}\n'
                )
        options = ServeOptions(
            profile=None,
            model_repositories=(_CORE, models),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
        )
        with contextlib.ExitStack() as stack:
            settings = self._settings(bench)
            if bench.admit:
                settings = full_store(settings, bench.work / "data", bench.examples)
            try:
                running = running_server(settings, options, progress=bench.progress)
                endpoints = stack.enter_context(running)
                if bench.admit:
                    bench.progress("making the statistics of the examples (once)")
                    wait_for_statistics(settings)
            except EchoError as error:
                raise PeerUnavailableError(f"{self.name}: {error}") from error
            model = contracts.ECHOLM.name
            http_port = int(endpoints.http_url.rsplit(":", 1)[1])
            fronts = {
                self.name: infer(endpoints.grpc_url, model),
                f"{self.name}-http": generate(http_port, model),
            }
            # The processes of the dummy LLMs are told by their models' directories.
            without = tuple(str(models / llm) for llm in _LLMS)
            parts = {
                name: ProcessTree(pid, without if name == "triton" else ())
                for name, pid in endpoints.pids.items()
            }
            yield Running(fronts, parts, own_llm=True)

    @staticmethod
    def _settings(bench: Bench) -> Settings:
        settings = Settings()
        # Examples stay as they are, so that every run searches the same store.
        fixed = settings.examples.model_copy(update={"enabled": False})
        data_dir = bench.directory.parent / f"path-{bench.examples}"
        return settings.model_copy(update={"data_dir": data_dir, "examples": fixed})
