"""The front door in a Triton of its own, in front of models that do as a test tells them."""

from __future__ import annotations

import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpcclient
from echolm import contracts
from echolm.contracts import ModelContract, Tensor
from echolm.serving.triton_installation import TritonInstallation
from echolm.serving.triton_server import TritonOptions, TritonServer
from generate_configs import generated
from triton_calls import eventually, inputs, outputs

MODEL = Path(__file__).parent / "front_door_models" / "model.py"
_OPTIONAL = tuple(
    Tensor(t.name, t.datatype, t.dims, optional=True)
    for t in (*contracts.ECHOLM_INPUTS, Tensor("report", "BYTES"))
)
_DEGRADED = Tensor("retrieval_degraded", "BYTES", optional=True)
_LLM = (
    (Tensor("text_input", "BYTES", (-1,)), Tensor("streaming", "BOOL")),
    (
        Tensor("text_output", "BYTES", (-1,)),
        Tensor("finish_reason", "BYTES", (-1,)),
        *contracts.TOKEN_COUNTS,
        Tensor("example_ids", "INT64", (-1,)),
        Tensor("logprobs", "BYTES", (-1,)),
    ),
)
LLMS = {"alpha": True, "beta": True, "unary": False}
"""The LLMs, and whether they are decoupled."""
_BATCHING = "dynamic_batching { }\n"


def write_models(folder: Path, library: Path) -> None:
    """The model repository: the front door's two models and those that it calls."""
    python = [
        (ModelContract("planner", _OPTIONAL, (contracts.PLAN,)), _BATCHING),
        (ModelContract("router", (*_OPTIONAL, _DEGRADED), (contracts.PLAN,)), _BATCHING),
        *(
            (ModelContract(name, *_LLM, max_batch_size=0, decoupled=decoupled), "")
            for name, decoupled in LLMS.items()
        ),
    ]
    for contract, extra in python:
        _write(folder, contract, "python", extra)
        shutil.copy(MODEL, folder / contract.name / "1" / "model.py")
    # An ensemble, as in the product, here of one step.
    maps = "".join(
        f'{kind}_map {{ key: "{t.name}" value: "{t.name}" }}\n'
        for kind, tensors in (("input", _OPTIONAL), ("output", (contracts.PLAN,)))
        for t in tensors
    )
    step = (
        f'ensemble_scheduling {{ step [ {{ model_name: "planner" model_version: -1\n{maps}}} ] }}'
    )
    selection = generated(ModelContract("selection", _OPTIONAL, (contracts.PLAN,)))
    (folder / "selection" / "1").mkdir(parents=True)
    (folder / "selection" / "config.pbtxt").write_text(f'platform: "ensemble"\n{selection}{step}\n')
    for contract in (contracts.ECHOLM, contracts.ECHOLM_STREAM):
        _write(folder, contract, "echolm")
        shutil.copy(library, folder / contract.name / "libtriton_echolm.so")


def _write(folder: Path, contract: ModelContract, backend: str, extra: str = "") -> None:
    (folder / contract.name / "1").mkdir(parents=True)
    (folder / contract.name / "config.pbtxt").write_text(
        f'backend: "{backend}"\n{generated(contract)}'
        f"instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n{extra}"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class FrontDoor:
    """A running server.

    Attributes:
        folder: where its models note what they see.
        log_file: what the server logged.
    """

    triton: TritonServer
    folder: Path
    log_file: Path
    grpc_url: str
    http_address: str

    def client(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.grpc_url)

    def unload(self, model: str) -> None:
        """Have a model unloaded; what it has in flight goes on."""
        self.client().unload_model(model, headers=self.triton.control_headers)

    def load(self, model: str) -> None:
        """Have a model loaded that is not."""
        self.client().load_model(model, headers=self.triton.control_headers)

    def ask(self, *scripts: dict[str, Any], model: str = "echolm", **options: Any) -> Any:
        """The outputs of one request, a row a script."""
        result = self.client().infer(model, tensors(*scripts, **options))
        return outputs(result, contracts.ECHOLM)

    def events(self, model: str = "", event: str = "", **fields: Any) -> list[dict[str, Any]]:
        """What the models have noted, as far as it has these values."""
        try:
            lines = (self.folder / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        wanted = {**({"model": model} if model else {}), **({"event": event} if event else {})}
        return [
            found
            for found in map(json.loads, lines)
            if all(found.get(key) == value for key, value in {**wanted, **fields}.items())
        ]

    def ids(self, name: str) -> list[str]:
        """Ids that requests of this name were given, by ``selection`` or ``router``."""
        return [event["request_id"] for event in self.events(event="id", name=name)]

    def reports(self, request_id: str) -> list[dict[str, Any]]:
        """What was reported of a request, once it has ended."""
        eventually(lambda: self._ended(request_id))
        return self.events("router", "report", request_id=request_id)

    def _ended(self, request_id: str) -> bool:
        found = self.events("router", "report", request_id=request_id)
        return any(report["kind"] != 1 for report in found)

    def ends(self) -> Counter[str]:
        """How often each request id was reported as answered or ended."""
        found = self.events("router", "report")
        return Counter(report["request_id"] for report in found if report["kind"] != 1)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Within it, what hangs does so; afterwards it goes on."""
        gate = self.folder / "open"
        gate.unlink(missing_ok=True)
        try:
            yield
        finally:
            gate.touch()


def tensors(*scripts: dict[str, Any], kind: Any = grpcclient, **options: Any) -> list[Any]:
    """Inputs of a request, a row a script; ``options`` are the same in all rows."""
    return inputs(kind, [{"text_input": json.dumps(script), **options} for script in scripts])


def plan(llm: str = "alpha", /, **script: Any) -> dict[str, Any]:
    """A plan that calls an LLM with a script."""
    return {"llm": llm, "script": script}


@contextmanager
def running_front_door(
    folder: Path,
    library: Path,
    environment: dict[str, str] | None = None,
    installation: TritonInstallation | None = None,
) -> Iterator[FrontDoor]:
    """Serve from a new folder."""
    write_models(folder / "models", library)
    (folder / "open").touch()
    http, grpc, metrics = free_port(), free_port(), free_port()
    triton = TritonServer(
        TritonOptions(
            model_repositories=(folder / "models",),
            run_dir=folder / "run",
            log_file=folder / "triton.log",
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            environment={"FRONT_DOOR_TEST": str(folder), **(environment or {})},
        ),
        installation,
    )
    triton.start()
    try:
        triton.wait_ready(120)
        yield FrontDoor(
            triton, folder, folder / "triton.log", f"127.0.0.1:{grpc}", f"127.0.0.1:{http}"
        )
    finally:
        (folder / "open").touch()
        triton.stop()
