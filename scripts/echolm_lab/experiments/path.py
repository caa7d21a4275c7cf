"""The path without generation: tokenizer, embedder, search, router; alone and beside admissions."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from echolm import contracts
from echolm.embedding.texts import TextEmbedder
from echolm.examples.statistics import StatisticsTable
from echolm.internal_calls import PROOF
from echolm.serving.attach import running_settings
from echolm.serving.serve import Endpoints
from echolm.settings import Settings
from echolm.wiring.internal_calls import build_call_proofs

from echolm_lab.experiments import perf_analyzer
from echolm_lab.tasks import WorkItem

_ROOT = Path(__file__).resolve().parents[3]
ADMITTED = 12_000
"""Different interactions that are admitted, again and again."""
STAGES = ("tokenizer", "embedder", "retriever", "router")
"""Models whose runs say where the time goes; a run of the router ends before its answer."""
_STATISTICS_S = 300.0
_LLM_PROCESSES = 2


def dummy_repository(directory: Path) -> Path:
    """The local profile's models, with LLMs that answer at once."""
    source = _ROOT / "model_repository" / "local"
    shutil.copytree(source / "embedder", directory / "embedder")
    for name in ("small_llm", "large_llm"):
        (directory / name / "1").mkdir(parents=True)
        shutil.copy(source / name / "1" / "model.py", directory / name / "1")
        # The same tensors; several of an engine that does nothing, so that none is waited for.
        lines = (source / name / "config.pbtxt").read_text(encoding="utf-8").splitlines()
        replaced = ("parameters", "instance_group")
        kept = [line for line in lines if not line.startswith(replaced)]
        kept.append(f"instance_group [ {{ kind: KIND_CPU count: {_LLM_PROCESSES} }} ]")
        kept.append('parameters { key: "engine" value: { string_value: "dummy" } }')
        (directory / name / "config.pbtxt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return directory


def stages(url: str) -> dict[str, dict[str, float]]:
    """What Triton has counted of each of the path's models so far, times in milliseconds."""
    client = grpc.InferenceServerClient(url)
    try:
        counted = client.get_inference_statistics().model_stats
    finally:
        client.close()
    totals: dict[str, dict[str, float]] = {}
    for model in counted:
        if model.name not in STAGES or not model.batch_stats:
            continue
        sizes, queue = model.batch_stats, model.inference_stats.queue
        busy_ns = sum(
            size.compute_input.ns + size.compute_infer.ns + size.compute_output.ns for size in sizes
        )
        totals[model.name] = {
            "rows": sum(size.batch_size * size.compute_infer.count for size in sizes),
            "runs": sum(size.compute_infer.count for size in sizes),
            "queued_ms": queue.ns / 1e6,
            "queued": queue.count,
            "busy_ms": busy_ns / 1e6,
        }
    return totals


def between(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Of each model: rows in a run, a request's wait for it, and a run's length in ms."""
    rows = {}
    for name, end in after.items():
        start = before.get(name, {})
        change = {key: value - start.get(key, 0.0) for key, value in end.items()}
        if change["runs"]:
            rows[name] = {
                "batch": change["rows"] / change["runs"],
                "queue_ms": change["queued_ms"] / max(1.0, change["queued"]),
                "run_ms": change["busy_ms"] / change["runs"],
                "runs": change["runs"],
            }
    return rows


def measure(
    model: str, url: str, inputs: Path, options: argparse.Namespace, load: Sequence[str]
) -> dict[str, Any]:
    """perf_analyzer under a load: requests/s, latency in milliseconds, and each model's part."""
    before = stages(url)
    with tempfile.TemporaryDirectory() as work:
        export = Path(work) / "export.json"
        done = perf_analyzer.run(
            ["-m", model, "-i", "grpc", "-u", url, "--async", f"--input-data={inputs}"]
            + [*load, f"--profile-export-file={export}"]
            + [f"--warmup-request-count={options.requests // 5}"]
            + [f"--request-count={options.requests}"]
        )
        if done.returncode or not export.exists():
            raise SystemExit(f"bench_path: perf_analyzer failed on {model}")
        figures = perf_analyzer.times_of(perf_analyzer.read_export(export))
    return {**figures, "stages": between(before, stages(url))}


def full_store(settings: Settings, data_dir: Path, examples: int) -> Settings:
    """Settings over a copy of the store that has no room for another example."""
    data_dir.mkdir()
    shutil.copy(settings.data_dir / "milvus.db", data_dir / "milvus.db")
    changes = {"enabled": True, "max_stored": examples, "low_watermark": 1.0}
    limited = settings.examples.model_copy(update=changes)
    return settings.model_copy(update={"data_dir": data_dir, "examples": limited})


def wait_for_statistics(settings: Settings) -> None:
    """Until the example manager, which has met the store for the first time, knows all of it.

    Raises:
        SystemExit: it does not in some minutes.
    """
    deadline = time.monotonic() + _STATISTICS_S
    decay = settings.examples.value_decay
    statistics = StatisticsTable(settings.statistics_path, settings.relative_costs, decay)
    try:
        while statistics.totals()[0] < settings.examples.max_stored or not statistics.is_complete:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"bench_path: no statistics of every example after {_STATISTICS_S:.0f} s"
                )
            time.sleep(1.0)
    finally:
        statistics.close()


class Admissions:
    """Hands new interactions to the example manager at a steady rate, each in a call of its own.

    Attributes:
        failed: calls that ended in an error.
        outcomes: of the others, by reason.
    """

    def __init__(
        self, endpoints: Endpoints, items: Sequence[WorkItem], rate: float, settings: Settings
    ) -> None:
        texts = [item.text for item in items]
        self._embeddings = TextEmbedder(settings.embedding)(texts)
        self._items = items
        self._rate = rate
        self._client = grpc.InferenceServerClient(endpoints.grpc_url)
        self._proofs = build_call_proofs(running_settings(endpoints.data_dir))
        self._stopping = threading.Event()
        self.failed = 0
        self.outcomes: Counter[str] = Counter()

    def _inputs(self, k: int) -> list[Any]:
        item = self._items[k]
        values: dict[str, Any] = {
            "request": item.text,
            "response": item.answer,
            "embedding": self._embeddings[k],
            "tenant": "public",
            "system_prompt": "",
            "llm": "large_llm",
            "finish_reason": "stop",
            "quality": 0.95,
            "help_probability": 0.0,
        }
        tensors = []
        for spec in contracts.EXAMPLE_MANAGER.inputs:
            value = values[spec.name]
            array = np.array(
                value.encode() if isinstance(value, str) else value,
                dtype=object if spec.datatype == "BYTES" else np.float32,
            ).reshape(1, -1)
            tensor = grpc.InferInput(spec.name, list(array.shape), spec.datatype)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        return tensors

    def _done(self, result: Any, error: Exception | None) -> None:
        if error is not None:
            self.failed += not self._stopping.is_set()  # then they are cut off
            return
        [[reason]] = result.as_numpy("reason").tolist()
        self.outcomes[reason.decode() or "admitted"] += 1

    def _run(self) -> None:
        started = time.monotonic()
        for k in itertools.count():
            if self._stopping.wait(max(0.0, started + k / self._rate - time.monotonic())):
                return
            inputs, model = self._inputs(k % len(self._items)), contracts.EXAMPLE_MANAGER.name
            signed = {tensor.name(): tensor._get_content() for tensor in inputs}
            proof = {PROOF: self._proofs.sign(model, signed)}
            self._client.async_infer(model, inputs, callback=self._done, parameters=proof)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """As long as the context lasts."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()
            self._client.close()


def beside_admissions(
    endpoints: Endpoints,
    inputs: Path,
    items: Sequence[WorkItem],
    options: argparse.Namespace,
    settings: Settings,
) -> dict[str, dict[str, Any]]:
    """The path alone and beside the admissions."""
    load = [f"--concurrency-range={options.concurrency}"]
    wait_for_statistics(settings)
    under = functools.partial(measure, "echolm", endpoints.grpc_url, inputs, options, load)
    results = {"alone": under()}
    admissions = Admissions(endpoints, items, options.interactions, settings)
    with admissions.running():
        started = time.monotonic()
        results["beside admissions"] = under()
        seconds = time.monotonic() - started
    if admissions.failed or not admissions.outcomes:
        raise SystemExit(
            f"bench_path: {admissions.failed} interactions were not taken, "
            f"{sum(admissions.outcomes.values())} were"
        )
    for outcome, number in admissions.outcomes.items():
        results["beside admissions"][f"{outcome}_per_s"] = number / seconds
    return results
