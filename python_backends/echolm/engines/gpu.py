"""What the engines on GPUs share: their options, and how their workers are started.

vLLM and TensorRT-LLM live in worker processes with the event loop of
:mod:`~echolm.engines.worker.asynchronous`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from echolm.engines.base import FINISH_CANCELLED, FINISH_LENGTH, FINISH_STOP, LLMEngine
from echolm.engines.copies import start_copies
from echolm.engines.options import at_least, wrong_option
from echolm.engines.worker.parent import WorkerEngine
from echolm.errors import ConfigurationError, UnavailableError
from echolm.primitives import Sampling

_GPUS = re.compile(r"[0-9]+(,[0-9]+)*|")
_FINISH = {"stop": FINISH_STOP, "length": FINISH_LENGTH}
# The word of vLLM, and that of TensorRT-LLM.
_FINISH |= {"abort": FINISH_CANCELLED, "cancelled": FINISH_CANCELLED}
_Options = TypeVar("_Options", bound="GPUOptions")


@dataclass(frozen=True)
class GPUOptions:
    """Options of every engine on GPUs.

    Attributes:
        engine: no option: name of the engine, of its library and of its module here, whose
            ``make_backend`` the worker calls.
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

    engine: ClassVar[str]
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

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a value that cannot work."""
        at_least(self.engine, self, 1, "tensor_parallel_size", "pipeline_parallel_size", "copies")
        if not self.start_timeout_s > 0:
            at_least(self.engine, self, 1, "start_timeout_s")
        if not _GPUS.fullmatch(self.gpus):
            raise wrong_option(self.engine, "gpus", "numbers as 0,1", repr(self.gpus))
        if self.gpus and len(set(self.gpus.split(","))) < self.gpus_each:
            product = "tensor_parallel_size times pipeline_parallel_size"
            expected = f"{self.gpus_each} of them ({product})"
            raise wrong_option(self.engine, "gpus", expected, repr(self.gpus))
        if self.python and not os.access(self.python, os.X_OK):
            raise wrong_option(self.engine, "python", "a Python interpreter", repr(self.python))
        self.more_arguments()

    def more_arguments(self) -> dict[str, Any]:
        """``engine_args`` as a dictionary.

        Raises ConfigurationError if it is no JSON object, or names an argument that has an option.
        """
        try:
            more = json.loads(self.engine_args or "{}")
        except ValueError as error:
            more = error
        if not isinstance(more, dict):
            raise wrong_option(self.engine, "engine_args", "a JSON object", repr(more))
        options = sorted(set(more) & {field.name for field in fields(self)})
        if options:
            got = f"{', '.join(options)}; set that as an option"
            expected = "only arguments without an option"
            raise wrong_option(self.engine, "engine_args", expected, got)
        return more

    @property
    def gpus_each(self) -> int:
        """Number of GPUs that each copy takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def split(self: _Options, memory: str) -> list[_Options]:
        """The options of each copy; those on the same GPUs divide the share named ``memory``."""
        if self.copies == 1:
            return [self]
        gpus = self.gpus.split(",") if self.gpus else []
        places = [
            ",".join(gpus[start : start + self.gpus_each])
            for start in range(0, len(gpus) - self.gpus_each + 1, self.gpus_each)
        ] or [""]
        taken = [places[k % len(places)] for k in range(self.copies)]
        share = getattr(self, memory)
        return [
            replace(self, copies=1, gpus=place, **{memory: share / taken.count(place)})
            for place in taken
        ]

    def library_arguments(self, model: str, **more: Any) -> dict[str, Any]:
        """Those that both libraries have by the same names, and ``more``; without what is None."""
        names = ["trust_remote_code", "dtype", "load_format"]
        names += ["tensor_parallel_size", "pipeline_parallel_size"]
        arguments = {"model": model, "tokenizer": self.tokenizer or None, **more}
        arguments |= {name: getattr(self, name) for name in names}
        return {name: value for name, value in arguments.items() if value is not None}

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the worker process."""
        return {"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus else {}


def check_model(engine: str, model_dir: Path, options: GPUOptions) -> str:
    """The model that the library is to load: a folder, or a name on the hub.

    Raises ConfigurationError if there is no such folder or no checkpoint in it.
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


def check_files(model_dir: Path, options: GPUOptions, install: str) -> None:
    """The model and the library are there.

    Args:
        install: how to get the library.

    Raises:
        ConfigurationError: one of them is not.
    """
    engine = options.engine
    check_model(engine, model_dir, options)
    if not options.python and find_spec(engine) is None:
        message = f"engine {engine}: expected the package {engine}, got none; {install}"
        raise ConfigurationError(message)


def start(model_dir: Path, options: GPUOptions, memory: str) -> LLMEngine:
    """Start the worker of an engine, or those of its copies.

    Args:
        memory: name of the option for the share of each GPU's memory, which copies divide.

    Raises:
        ConfigurationError: the model is not there, or cannot be loaded.
        UnavailableError: a worker ended or did not get ready in time.
    """
    engine = options.engine
    model = check_model(engine, model_dir, options)
    makers = [
        partial(
            WorkerEngine,
            engine,
            "async",
            f"echolm.engines.{engine}:make_backend",
            {"model": model, "options": asdict(copy)},
            start_timeout_s=copy.start_timeout_s,
            python=copy.python,
            environment=copy.environment,
        )
        for copy in options.split(memory)
    ]
    return start_copies(makers)


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
    seldom = {
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_tokens,
    }
    return {
        **{name: value for name, value in seldom.items() if value != getattr(Sampling, name)},
        "max_tokens": sampling.max_tokens,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        # Of 64 bits, both take those that a signed number holds.
        "seed": None if sampling.seed is None else sampling.seed & (2**63 - 1),
    }


def finish_reason(engine: str, reason: str | None) -> str:
    """Why an answer has ended; UnavailableError if that is no answer."""
    if reason not in _FINISH:
        raise UnavailableError(f"engine {engine}: the answer ended with {reason!r}; try again")
    return _FINISH[reason]
