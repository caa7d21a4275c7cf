"""What the engines on GPUs share: their options, and how their workers are started.

vLLM and TensorRT-LLM live in worker processes (:mod:`~echolm.engines.worker`), whose event loop is
:mod:`~echolm.engines.worker.asynchronous`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from echolm.engines.base import LLMEngine
from echolm.engines.copies import start_copies
from echolm.engines.options import at_least
from echolm.engines.worker.parent import WorkerEngine
from echolm.errors import ConfigurationError
from echolm.primitives import Sampling

_GPUS = re.compile(r"[0-9]+(,[0-9]+)*|")
_Options = TypeVar("_Options", bound="GPUOptions")


@dataclass(frozen=True)
class GPUOptions:
    """Options of every engine on GPUs.

    Attributes:
        model: a folder with a Hugging Face checkpoint, or its name on the hub, in place of the
            model's ``model_dir``.
        tokenizer: a folder, or a name on the hub, with another tokenizer; empty: the model's.
        trust_remote_code: whether the checkpoint's own Python code may run.
        gpus: numbers of the GPUs to use, as ``0,1``; empty: all that CUDA shows. GPUs that two
            LLMs share are loaded one after the other, since both measure the memory.
        tensor_parallel_size: GPUs that share each layer.
        pipeline_parallel_size: groups of layers that are on different GPUs.
        dtype: type of weights and activations; ``auto``: as the checkpoint says.
        load_format: ``dummy`` takes random weights, to measure speed without any.
        python: interpreter whose environment has the library; empty: that of Triton's models.
        start_timeout_s: time for the model to load, waiting for the GPU included.
        copies: number of copies of the engine, each with processes and a KV cache of its own. They
            are spread over the GPUs, ``tensor_parallel_size * pipeline_parallel_size`` for each;
            those on the same GPUs divide the share of memory. Worth it where a small LLM's engine
            keeps one CPU core busy and the GPU idle; on one GPU together with NVIDIA's MPS.
        engine_args: more arguments for the library, as a JSON object.
    """

    model: str = ""
    tokenizer: str = ""
    trust_remote_code: bool = False
    gpus: str = ""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    dtype: str = "auto"
    load_format: str = "auto"
    python: str = ""
    start_timeout_s: float = 1_800.0
    copies: int = 1
    engine_args: str = ""

    def check(self, engine: str) -> None:
        """Raises ConfigurationError for a value that cannot work."""
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "copies"):
            at_least(engine, name, getattr(self, name), 1)
        if not self.start_timeout_s > 0:
            at_least(engine, "start_timeout_s", self.start_timeout_s, 1)
        if not _GPUS.fullmatch(self.gpus):
            raise ConfigurationError(
                f"engine {engine}: option gpus: expected numbers as 0,1, got {self.gpus!r}"
            )
        if self.gpus and len(set(self.gpus.split(","))) < self.gpus_each:
            raise ConfigurationError(
                f"engine {engine}: option gpus: expected {self.gpus_each} of them "
                f"(tensor_parallel_size times pipeline_parallel_size), got {self.gpus!r}"
            )
        if self.python and not os.access(self.python, os.X_OK):
            raise ConfigurationError(
                f"engine {engine}: option python: expected a Python interpreter, got "
                f"{self.python!r}"
            )

    def more_arguments(self, engine: str) -> dict[str, Any]:
        """``engine_args`` as a dictionary.

        Raises:
            ConfigurationError: it is no JSON object, or names an argument that has an option.
        """
        if not self.engine_args:
            return {}
        try:
            more = json.loads(self.engine_args)
        except ValueError as error:
            more = error
        if not isinstance(more, dict):
            raise ConfigurationError(
                f"engine {engine}: option engine_args: expected a JSON object, got {more!r}"
            )
        options = sorted(set(more) & {*self.__dataclass_fields__})
        if options:
            raise ConfigurationError(
                f"engine {engine}: option engine_args: expected only arguments without an option, "
                f"got {', '.join(options)}; set that as an option"
            )
        return more

    @property
    def gpus_each(self) -> int:
        """Number of GPUs that each copy takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def split(self: _Options, memory: str) -> list[_Options]:
        """The options of each copy, which share the GPUs and their memory.

        Args:
            memory: name of the option for the share of each GPU's memory.
        """
        if self.copies == 1:
            return [self]
        gpus = self.gpus.split(",") if self.gpus else []
        places = [
            ",".join(gpus[start : start + self.gpus_each])
            for start in range(0, len(gpus) - self.gpus_each + 1, self.gpus_each)
        ] or [""]
        taken = [places[k % len(places)] for k in range(self.copies)]
        return [
            replace(
                self, copies=1, gpus=place, **{memory: getattr(self, memory) / taken.count(place)}
            )
            for place in taken
        ]

    def common_arguments(self, model: str) -> dict[str, Any]:
        """Arguments that both libraries have, by the same names."""
        return {
            "model": model,
            "tokenizer": self.tokenizer or None,
            "trust_remote_code": self.trust_remote_code,
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "dtype": self.dtype,
            "load_format": self.load_format,
        }

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the worker process."""
        return {"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus else {}


def check_model(engine: str, model_dir: Path, options: GPUOptions) -> str:
    """The model that the library is to load: a folder, or a name on the hub.

    Raises:
        ConfigurationError: there is no such folder or no checkpoint in it.
    """
    if options.model and not options.model.startswith(("/", ".", "~")):
        return options.model
    directory = Path(options.model).expanduser() if options.model else model_dir
    if not (directory / "config.json").is_file():
        raise ConfigurationError(
            f"engine {engine}: expected a Hugging Face checkpoint in {directory}, got no "
            "config.json there; name the checkpoint with the parameter `model`, or write a model "
            "repository with `echolm build --help`"
        )
    return str(directory.resolve())


def start(
    engine: str, model_dir: Path, options: GPUOptions, memory: str, install: str
) -> LLMEngine:
    """Check what can be checked here, then start the worker of an engine, or those of its copies.

    Args:
        engine: its name, and that of its library and of its module, whose ``make_backend`` the
            worker calls.
        memory: name of the option for the share of each GPU's memory.
        install: how to get the library.

    Raises:
        ConfigurationError: the library or the model is not there, or cannot be loaded.
        UnavailableError: a worker ended or did not get ready in time.
    """
    model = check_model(engine, model_dir, options)
    if not options.python and find_spec(engine) is None:
        raise ConfigurationError(
            f"engine {engine}: expected the package {engine}, got none; {install}"
        )
    return start_copies([partial(_start, engine, model, copy) for copy in options.split(memory)])


def _start(engine: str, model: str, options: GPUOptions) -> WorkerEngine:
    return WorkerEngine(
        engine,
        "async",
        f"echolm.engines.{engine}:make_backend",
        {"model": model, "options": asdict(options)},
        start_timeout_s=options.start_timeout_s,
        python=options.python,
        environment=options.environment,
    )


def read_model_config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a folder; an empty one for a name on the hub."""
    file = Path(model) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(config, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(config).__name__}")
    return config


@contextlib.contextmanager
def loading(gpus: str) -> Iterator[None]:
    """Hold the GPUs for loading: one process at a time on each.

    Both libraries size their KV cache by the memory that is free before and after a trial step.
    What another process takes meanwhile would be counted as theirs.
    """
    base = Path(tempfile.gettempdir()) / f"echolm-gpu-{os.getuid()}"
    with contextlib.ExitStack() as held:
        for gpu in ["all", *sorted(set(gpus.split(",")) - {""})]:
            # Close-on-exec, so the library's own processes do not keep it.
            file = held.enter_context(open(f"{base}-{gpu}.lock", "a"))
            fcntl.flock(file, fcntl.LOCK_SH if gpus and gpu == "all" else fcntl.LOCK_EX)
        yield


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Arguments that vLLM's and TensorRT-LLM's ``SamplingParams`` have in common."""
    return {
        "max_tokens": sampling.max_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop": list(sampling.stop) or None,
        # Of 64 bits, both take those that a signed number holds.
        "seed": None if sampling.seed is None else sampling.seed & (2**63 - 1),
    }


def checked_arguments(engine: str, arguments: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """``engine_args`` that the library knows; ConfigurationError names the others."""
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigurationError(
            f"engine {engine}: option engine_args: expected arguments that the library knows, got "
            f"{', '.join(unknown)}"
        )
    return dict(arguments)
