"""``echolm build``: a model repository and an ``echolm.toml`` for two LLMs.

::

    OUTPUT/
      echolm.toml      the settings; its folder is where `echolm serve` finds the models
      core/            the models of every profile
      PROFILE/         embedder small_llm large_llm
      embedder/        model.onnx tokenizer.json embedder.json
      data/            everything that the server writes; `echolm serve` creates it

Everything that can be known before an LLM is converted is checked before a file is written.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import psutil
import tomli_w

from echolm.embedding import minilm
from echolm.embedding.spec import MODEL_FILE
from echolm.engines.gpu import GPUOptions
from echolm.engines.openvino import OpenVINOOptions
from echolm.engines.options import read_options
from echolm.engines.tensorrt_llm import TensorRTLLMOptions
from echolm.engines.vllm import VLLMOptions
from echolm.errors import ConfigurationError
from echolm.serving import conversion, cpu_models, model_config
from echolm.serving.checkpoint import BASE_STOP, PLAIN, Checkpoint
from echolm.serving.cpu_models import CPUModel
from echolm.serving.model_source import check_weights, find_model
from echolm.serving.serve import Progress, model_repository_root
from echolm.settings import JudgingSettings
from echolm.settings.loading import load_settings

CONFIGURATION = "echolm.toml"
DEFAULT_CONTEXT = 8_192
"""Tokens, if the model can take as many: a longer context takes memory from the batch."""
_ROLES = ("small", "large")
_SHARE_ALONE, _SHARES = 0.9, {"small": 0.3, "large": 0.6}
"""Shares of a GPU's memory: of an LLM that has it for itself, and of two on the same."""
_PAD = 32
"""Tokens to a multiple of which texts are padded for the ONNX Runtime backend, which batches only
what has the same length."""


@dataclass(frozen=True)
class Profile:
    """What differs between the libraries.

    Attributes:
        context, batch, memory: names of the options for the context length, for requests in one
            step, and for the share of each GPU's memory.
    """

    engine: str
    options: type[GPUOptions]
    context: str
    batch: str
    memory: str


PROFILES: Mapping[str, Profile] = {
    "vllm": Profile("vllm", VLLMOptions, "max_model_len", "max_num_seqs", "gpu_memory_utilization"),
    "tensorrt_llm": Profile(
        "tensorrt_llm", TensorRTLLMOptions, "max_seq_len", "max_batch_size", "gpu_memory_share"
    ),
}


CPU_PROFILE = "local"
_CPU_BATCH = 64
_CAPACITY = {"small": 8.0, "large": 3.0}
"""Requests in flight for each thread from which on an LLM on the CPU counts as full."""
_CPU_OPTIONS = ("model", "context_length")
"""Options of the engine that are set by others."""


@dataclass(frozen=True)
class LLMChoice:
    """One LLM as the command line names it.

    Attributes:
        model: folder of the checkpoint or built engine, a GGUF file, or a name on the hub.
        tokenizer: folder of the tokenizer, if it is another one.
        gpus: numbers of the GPUs, as ``0,1``; None: the first.
        memory: share of each GPU's memory; None: 0.9 alone on a GPU; together 0.3 and 0.6.
        context: in tokens; None: what the model can, at most 8,192.
        template: chat template as in ``llms.chat_template``; empty: the tokenizer's own, or a
            built-in one that suits it.
        options: more options of the engine.
    """

    model: str
    tokenizer: Path | None = None
    gpus: str | None = None
    memory: float | None = None
    context: int | None = None
    template: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        llms: by role, ``small`` and ``large``.
        embedder: form of the embedding model, where a python model runs it; None: ``cuda`` where
            ONNX Runtime has it.
        processes: of the retriever, each of which is one core at most.
        force: whether an earlier build in ``output`` may be replaced.
        weights: format of the weights of what is converted for the CPU: ``int8`` or ``int4``.
        converter: interpreter that converts; see :mod:`echolm.serving.conversion`.
    """

    profile: str
    llms: Mapping[str, LLMChoice]
    output: Path
    embedder: minilm.Form | None = None
    processes: int = 1
    repository_root: Path | None = None
    force: bool = False
    weights: conversion.Weights = "int8"
    converter: Path | None = None


@dataclass(frozen=True)
class _LLM:
    """One LLM as it is served.

    Attributes:
        values: parameters of its Triton model.
        template: see ``llms.chat_template``.
        capacity, pool: see ``[[llms]]``.
    """

    role: str
    checkpoint: Checkpoint
    name: str
    context: int
    template: str
    values: Mapping[str, str]
    capacity: float
    num_parameters: int
    pool: str = ""

    @property
    def gpus(self) -> set[str]:
        return set(self.values.get("gpus", "").split(","))


def build(options: BuildOptions, say: Progress) -> Path:
    """Check everything, then write the repository; returns its ``echolm.toml``.

    Raises:
        ConfigurationError: something is missing, or does not fit together.
    """
    profile = PROFILES.get(options.profile)
    if profile is None and options.profile != CPU_PROFILE:
        raise ConfigurationError(
            f"--profile: expected one of {', '.join((CPU_PROFILE, *PROFILES))}, got "
            f"{options.profile!r}"
        )
    if options.processes < 1:
        raise ConfigurationError(f"--processes: expected 1 or more, got {options.processes}")
    if options.weights not in get_args(conversion.Weights):
        raise ConfigurationError(f"--weights: expected int8 or int4, got {options.weights!r}")
    output = options.output.expanduser().resolve()
    if output.exists() and any(output.iterdir()) and not options.force:
        raise ConfigurationError(
            f"--output {output}: expected a new or empty folder, got one with files in it; choose "
            "another, or replace an earlier build with --force"
        )
    root = model_repository_root(options.repository_root)
    if profile is None:
        models = {role: _cpu_model(role, options) for role in _ROLES}
        for role, cpu_model in models.items():
            if cpu_model.source.path.is_relative_to(output):
                raise ConfigurationError(
                    f"--{role} {cpu_model.source.path}: expected it outside of --output {output}, "
                    "which is written anew; move it, or choose another --output"
                )
        cpu_models.check_memory(list(models.values()))
        converter = None
        if any(model.is_converted for model in models.values()):
            converter = conversion.find_converter(options.converter, say)
        output.mkdir(parents=True, exist_ok=True)
        _copy(root / CPU_PROFILE, output / CPU_PROFILE, "openvino", "*.md")
        llms = [
            _cpu_llm(role, model, options, output, converter, say) for role, model in models.items()
        ]
    else:
        llms = [_llm(role, profile, options) for role in _ROLES]
        _check_memory(profile, llms)
        output.mkdir(parents=True, exist_ok=True)
        _copy(root / options.profile, output / options.profile)
    # Whether Triton's ONNX Runtime backend runs the embedder, not our python model.
    embedder = model_config.read(root / options.profile / "embedder")
    in_backend = embedder.backend == "onnxruntime"
    settings = _settings(llms, in_backend, say)

    _copy(root / "core", output / "core")
    _set_processes(output / "core" / "retriever", options.processes)
    engine = "openvino" if profile is None else profile.engine
    for llm in llms:
        model = output / options.profile / f"{llm.role}_llm"
        config = model_config.read(model)
        config.parameters.clear()
        for key, value in {"engine": engine, **llm.values}.items():
            config.parameters[key].string_value = value
        model_config.write(model, config)
    _embedder(options, output, in_backend, say)
    file = output / CONFIGURATION
    file.write_text(_HEADER.format(profile=options.profile, file=file) + tomli_w.dumps(settings))
    load_settings(file)  # It must be what `echolm serve` takes.
    return file


_HEADER = """\
# Written by `echolm build`; all keys are in python_backends/SETTINGS.md.
#   echolm serve --profile {profile} --config {file}
# cost: relative, from the LLMs' sizes. How good the LLMs are is learnt: at first the large one
# answers, the small one is asked beside it, and the large one compares both answers
# (routing.warm_up_ratings). Then a share of the answers is compared ([judging]), and ratings by
# callers count as well.
"""


def _set_processes(model: Path, number: int) -> None:
    """Give a model so many instances; Triton gives each python instance a process."""
    config = model_config.read(model)
    groups = config.instance_group
    if len(groups) != 1:
        raise ConfigurationError(
            f"model {model.name}: expected one instance_group in its configuration, got "
            f"{len(groups)}"
        )
    if groups[0].count != number:
        groups[0].count = number
        model_config.write(model, config)


def _cpu_model(role: str, options: BuildOptions) -> CPUModel:
    """An LLM for the CPU, checked as far as it can be before it is converted."""
    choice = options.llms[role]
    for name in ("gpus", "memory", "tokenizer"):
        if getattr(choice, name) is not None:
            raise ConfigurationError(
                f"--{role}-{name}: expected it with a profile for GPUs only, got it with --profile "
                f"{CPU_PROFILE}; leave it out"
            )
    for name in (*_CPU_OPTIONS, "model_dir"):
        if name in choice.options:
            raise ConfigurationError(
                f"--{role}-set {name}: expected an option that --{role} and --{role}-context do "
                "not set"
            )
    read_options(OpenVINOOptions, choice.options, "openvino")
    model = CPUModel.check(find_model(choice.model, f"--{role}"), options.weights, f"--{role}")

    def check(checkpoint: Checkpoint) -> None:
        _context(role, choice, checkpoint, "context_length")
        checkpoint.chat_template(choice.template, f"--{role}-template")

    model.described(check)
    return model


def _cpu_llm(
    role: str,
    model: CPUModel,
    options: BuildOptions,
    output: Path,
    converter: Path | None,
    say: Progress,
) -> _LLM:
    """An LLM whose files are ready for the engine."""
    choice = options.llms[role]
    folder = output / CPU_PROFILE / f"{role}_llm" / "1" / "openvino"
    folder = model.make(folder, converter, say)
    checkpoint = Checkpoint.read(folder)
    context = _context(role, choice, checkpoint, "context_length")
    template = checkpoint.chat_template(choice.template, f"--{role}-template")
    if model.source.kind != "openvino":
        cpu_models.complete_end_ids(folder, template)
        checkpoint = Checkpoint.read(folder)
    threads = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)
    values = {
        "model_dir": "openvino" if folder.is_relative_to(output) else str(folder),
        "context_length": str(context),
        "num_kv_blocks": str(cpu_models.kv_blocks(folder, context)),
        "threads": str(threads),
        "max_num_seqs": str(_CPU_BATCH),
        **choice.options,
    }
    if model.source.kind == "gguf" and not model.is_converted:
        values["model"] = str(model.source.path)
    return _LLM(
        role,
        checkpoint,
        model.source.name,
        context,
        template,
        values,
        capacity=_CAPACITY[role] * threads,
        num_parameters=model.num_parameters,
        pool="cpu",
    )


def _llm(role: str, profile: Profile, options: BuildOptions) -> _LLM:
    choice = options.llms[role]
    source = find_model(choice.model, f"--{role}")
    without_weights = choice.options.get("load_format") == "dummy"
    if source.kind == "gguf" or (source.kind == "openvino" and not without_weights):
        raise ConfigurationError(
            f"--{role} {choice.model}: expected a Hugging Face checkpoint, got another kind of "
            f"model ({source.kind}); name the checkpoint that it was made of, or serve it with "
            f"--profile {CPU_PROFILE}"
        )
    if not without_weights:
        check_weights(source)
    checkpoint = Checkpoint.read(source.path, choice.tokenizer)
    directory, tokenizer = checkpoint.directory, checkpoint.tokenizer.parent
    if checkpoint.built and profile.engine != "tensorrt_llm":
        raise ConfigurationError(
            f"checkpoint {directory}: expected a Hugging Face checkpoint, got an engine built for "
            "TensorRT-LLM; serve it with --profile tensorrt_llm"
        )
    context = _context(role, choice, checkpoint, profile.context)
    values = _engine(profile, role, options)
    values |= {profile.context: str(context), "model": str(directory)}
    if tokenizer != directory:
        values["tokenizer"] = str(tokenizer)
    if python := values.get("python"):  # not where it is served from
        values["python"] = os.path.abspath(Path(python).expanduser())
    parsed = read_options(profile.options, values, profile.engine)
    template = checkpoint.chat_template(choice.template, f"--{role}-template")
    return _LLM(
        role,
        checkpoint,
        source.name,
        context,
        template,
        values,
        capacity=float(getattr(parsed, profile.batch) * parsed.copies),
        num_parameters=checkpoint.num_parameters,
    )


def _engine(profile: Profile, role: str, options: BuildOptions) -> dict[str, str]:
    """The engine's options as far as they do not depend on the checkpoint."""
    choice = options.llms[role]
    numbers = "0" if choice.gpus is None else choice.gpus
    gpus = [gpu for gpu in numbers.split(",") if gpu]
    other = options.llms["large" if role == "small" else "small"]
    memory = choice.memory
    if memory is None:
        memory = _SHARES[role] if set(gpus) & set((other.gpus or "0").split(",")) else _SHARE_ALONE
    # What is no number is refused later, by its own name.
    counts = [choice.options.get(name, "1") for name in ("pipeline_parallel_size", "copies")]
    groups = math.prod(max(1, int(count)) for count in counts if count.isdigit())
    return {
        "gpus": numbers,
        "tensor_parallel_size": str(max(1, len(gpus) // groups)),
        profile.batch: "256",
        profile.memory: f"{memory:g}",
        **choice.options,
    }


def _context(role: str, choice: LLMChoice, checkpoint: Checkpoint, option: str) -> int:
    if option in choice.options:
        raise ConfigurationError(
            f"--{role}-set {option}: expected the context length as --{role}-context"
        )
    longest = checkpoint.context_length
    if choice.context is None:
        return longest if checkpoint.built else min(longest, DEFAULT_CONTEXT)
    if not 0 < choice.context <= longest:
        raise ConfigurationError(
            f"--{role}-context: expected 1 to {longest} (what {checkpoint.directory} can), got "
            f"{choice.context}"
        )
    return choice.context


def _check_memory(profile: Profile, llms: Sequence[_LLM]) -> None:
    """The LLMs' shares of each GPU's memory fit."""
    for gpu in sorted(set.union(*(llm.gpus for llm in llms))):
        on_it = [llm for llm in llms if gpu in llm.gpus]
        shares = {llm.role: float(llm.values[profile.memory]) for llm in on_it}
        if sum(shares.values()) > 1:
            got = " and ".join(f"{share:g} ({role})" for role, share in shares.items())
            raise ConfigurationError(
                f"GPU {gpu}: expected shares of its memory of at most 1 together, got {got}; give "
                "less with --small-memory or --large-memory, or other GPUs with --small-gpus or "
                "--large-gpus"
            )


def _settings(llms: Sequence[_LLM], in_backend: bool, say: Progress) -> dict[str, Any]:
    """What ``echolm.toml`` holds."""
    small, large = (llm.num_parameters for llm in llms)
    ratio = small / large if small and large else 0.1
    if ratio >= 1:
        say("warning: the small LLM is no smaller than the large one: it will save nothing")
    costs = {"small": round(min(max(ratio, 0.01), 1.0), 3), "large": 1.0}
    on_gpus = not any(llm.pool for llm in llms)
    shared = on_gpus and set.intersection(*(llm.gpus for llm in llms))
    if shared:
        say(
            "note: both LLMs run on the same GPU, and take turns there unless NVIDIA's MPS runs "
            "(`nvidia-cuda-mps-control -d`, before the server)"
        )
    for llm in llms:
        if end := llm.checkpoint.missing_end(llm.template):
            say(
                f"warning: {end} ends a turn in the chat template, but is no eos_token_id of "
                f"{llm.checkpoint.directory}: answers of the {llm.role} LLM may go "
                "on after it"
            )
        if llm.template == PLAIN:
            say(
                f"note: {llm.checkpoint.directory} has no chat template, as base models have none: "
                f"the {llm.role} LLM gets requests and answers under headings, and its answers end "
                "with their first line (chat_template and stop in echolm.toml)"
            )
    embedding: dict[str, Any] = {"model_dir": "embedder"}
    if in_backend:
        embedding["pad_to_multiple_of"] = _PAD
    sections = [
        {
            "name": f"{llm.role}_llm",
            "revision": llm.name[:128],
            "cost": costs[llm.role],
            "takes_examples": llm.role == "small",
            "can_judge": llm.template != PLAIN,
            "capacity": llm.capacity,
            "pool": llm.pool or ("gpus" if shared else ""),
            "context_length": llm.context,
            **({"chat_template": llm.template} if llm.template else {}),
            **({"stop": list(BASE_STOP)} if llm.template == PLAIN else {}),
            **llm.checkpoint.recommended_sampling(),
            "tokenizer": str(llm.checkpoint.tokenizer),
        }
        for llm in llms
    ]
    judging = {"kind": "llm", "sample_share": JudgingSettings().sample_share}
    return {"data_dir": "data", "embedding": embedding, "judging": judging, "llms": sections}


def _copy(source: Path, target: Path, *without: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", *without)
    shutil.copytree(source, target, ignore=ignored)


def _embedder(options: BuildOptions, output: Path, in_backend: bool, say: Progress) -> None:
    # In the backend only the tokenizer model reads the folder.
    form = "fp32" if in_backend else options.embedder or _best_form()
    say(f"building the embedding model ({'ONNX Runtime backend' if in_backend else form})")
    folder = output / "embedder"
    minilm.build(folder, form)
    if in_backend:
        model = output / options.profile / "embedder" / "1"
        shutil.copyfile(folder / MODEL_FILE, model / MODEL_FILE)


def _best_form() -> minilm.Form:
    """The embedding model's fastest form that this environment has the packages for."""
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return "cuda"
    return "fast" if find_spec("openvino") is not None else "fp32"


def built_root(configuration: Path | None, profile: str) -> Path | None:
    """The folder of a configuration, if ``echolm build`` has put the profile's models there.

    Raises:
        ConfigurationError: it has put those of another profile there.
    """
    folder = configuration.resolve().parent if configuration else None
    if folder is None or not (folder / "core").is_dir():
        return None
    if (folder / profile).is_dir():
        return folder
    built = [name for name in (CPU_PROFILE, *PROFILES) if (folder / name).is_dir()]
    if built:
        raise ConfigurationError(
            f"profile: expected {' or '.join(built)}, for which `echolm build` wrote "
            f"{configuration}, got {profile!r}; choose it with --profile {built[0]}"
        )
    return None
