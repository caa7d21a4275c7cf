"""``echolm build``: a model repository and an ``echolm.toml`` for LLMs on NVIDIA GPUs.

::

    OUTPUT/
      echolm.toml      the settings; its folder is where `echolm serve` finds the models
      core/            the models of every profile
      vllm/            embedder small_llm large_llm; or tensorrt_llm/ with the same three
      embedder/        model.onnx tokenizer.json embedder.json
      data/            everything that the server writes; `echolm serve` creates it

Everything is checked before a file is written.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w

from echolm.embedding import minilm
from echolm.embedding.minilm import Form
from echolm.embedding.spec import MODEL_FILE
from echolm.engines.gpu import GPUOptions
from echolm.engines.options import read_options
from echolm.engines.tensorrt_llm import TensorRTLLMOptions
from echolm.engines.vllm import VLLMOptions
from echolm.errors import ConfigurationError
from echolm.serving import model_config
from echolm.serving.checkpoint import Checkpoint
from echolm.serving.serve import model_repository_root
from echolm.settings.loading import load_settings

CONFIGURATION = "echolm.toml"
DEFAULT_CONTEXT = 8_192
"""Tokens, if the model can take as many: a longer context takes memory from the batch."""
_ROLES = ("small", "large")
_SHARES = {"alone": {"small": 0.9, "large": 0.9}, "together": {"small": 0.3, "large": 0.6}}
_PRIORS = {"small": 0.7, "large": 0.9}
_SCALED = ("echolm", "echolm_stream", "retriever")
"""Models of one python process each, which is one core at most."""
_PAD = 32
"""Tokens to a multiple of which texts are padded for the ONNX Runtime backend, which batches only
what has the same length."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """What differs between the libraries.

    Attributes:
        engine: name of the engine.
        options: its options.
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


@dataclass(frozen=True)
class LLMChoice:
    """One LLM as the command line names it.

    Attributes:
        model: folder of the checkpoint or built engine.
        tokenizer: folder of the tokenizer, if it is another one.
        gpus: numbers of the GPUs, as ``0,1``.
        memory: share of each GPU's memory; None: 0.9 alone on a GPU; together 0.3 and 0.6.
        context: context length in tokens; None: what the model can, at most 8,192.
        template: prompt template; empty: by the tokenizer.
        options: more options of the engine.
    """

    model: Path
    tokenizer: Path | None = None
    gpus: str = "0"
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
        processes: of the router (for each of its two models) and of the retriever.
        force: whether an earlier build in ``output`` may be replaced.
    """

    profile: str
    llms: Mapping[str, LLMChoice]
    output: Path
    embedder: Form | None = None
    processes: int = 1
    repository_root: Path | None = None
    force: bool = False


def build(options: BuildOptions, say: Say) -> Path:
    """Check everything, then write the repository; returns its ``echolm.toml``.

    Raises:
        ConfigurationError: something is missing, or does not fit together.
    """
    profile = PROFILES.get(options.profile)
    if profile is None:
        raise ConfigurationError(
            f"--profile: expected one of {', '.join(PROFILES)}, got {options.profile!r}"
        )
    if options.processes < 1:
        raise ConfigurationError(f"--processes: expected 1 or more, got {options.processes}")
    output = options.output.expanduser().resolve()
    if output.exists() and any(output.iterdir()) and not options.force:
        raise ConfigurationError(
            f"--output {output}: expected a new or empty folder, got one with files in it; choose "
            "another, or replace an earlier build with --force"
        )
    root = model_repository_root(options.repository_root)
    engines = {role: _engine(profile, role, options) for role in _ROLES}
    checkpoints = {role: _checkpoint(options.llms[role], profile) for role in _ROLES}
    contexts = {
        role: _context(role, options.llms[role], checkpoints[role], profile) for role in _ROLES
    }
    values = {
        role: {
            **engines[role],
            profile.context: str(contexts[role]),
            "model": str(checkpoints[role].directory),
            **_tokenizer(checkpoints[role]),
        }
        for role in _ROLES
    }
    parsed = {role: read_options(profile.options, values[role], profile.engine) for role in _ROLES}
    _check_memory(profile, parsed)
    in_backend = _runs_in_backend(root / options.profile / "embedder")
    settings = _settings(options, profile, checkpoints, contexts, parsed, in_backend, say)

    output.mkdir(parents=True, exist_ok=True)
    _copy(root / "core", output / "core")
    for name in _SCALED:
        _set_processes(output / "core" / name, options.processes)
    _copy(root / options.profile, output / options.profile)
    for role in _ROLES:
        model = output / options.profile / f"{role}_llm"
        _set_parameters(model, {"engine": profile.engine, **values[role]})
    _embedder(options, output, say)
    file = output / CONFIGURATION
    file.write_text(_HEADER.format(profile=options.profile, file=file) + tomli_w.dumps(settings))
    load_settings(file)  # It must be what `echolm serve` takes.
    return file


_HEADER = """\
# Written by `echolm build`; all keys are in python_backends/SETTINGS.md.
#   echolm serve --profile {profile} --config {file}
# cost: relative, from the LLMs' sizes. prior_quality: a guess until there are ratings.
"""


def _set_parameters(model: Path, values: Mapping[str, str]) -> None:
    """Give a model these parameters in place of its own."""
    config = model_config.read(model)
    config.parameters.clear()
    for key, value in values.items():
        config.parameters[key].string_value = value
    model_config.write(model, config)


def _set_processes(model: Path, number: int) -> None:
    """Give a model so many instances; Triton gives each python instance a process."""
    config = model_config.read(model)
    if len(config.instance_group) != 1:
        raise ConfigurationError(
            f"model {model.name}: expected one instance_group in its configuration, got "
            f"{len(config.instance_group)}"
        )
    if config.instance_group[0].count != number:
        config.instance_group[0].count = number
        model_config.write(model, config)


def _engine(profile: Profile, role: str, options: BuildOptions) -> dict[str, str]:
    """The engine's options as far as they do not depend on the checkpoint."""
    choice = options.llms[role]
    gpus = [gpu for gpu in choice.gpus.split(",") if gpu]
    other = options.llms["large" if role == "small" else "small"]
    shared = set(gpus) & set(other.gpus.split(","))
    memory = choice.memory
    if memory is None:
        memory = _SHARES["together" if shared else "alone"][role]
    given = dict(choice.options)
    # What is no number is refused later, by its own name.
    counts = [given.get(name, "1") for name in ("pipeline_parallel_size", "copies")]
    groups = math.prod(max(1, int(count)) for count in counts if count.isdigit())
    return {
        "gpus": choice.gpus,
        "tensor_parallel_size": str(max(1, len(gpus) // groups)),
        profile.batch: "256",
        profile.memory: f"{memory:g}",
        **given,
    }


def _checkpoint(choice: LLMChoice, profile: Profile) -> Checkpoint:
    found = Checkpoint.read(choice.model, choice.tokenizer)
    if found.built and profile.engine != "tensorrt_llm":
        raise ConfigurationError(
            f"checkpoint {found.directory}: expected a Hugging Face checkpoint, got an engine "
            "built for TensorRT-LLM; serve it with --profile tensorrt_llm"
        )
    return found


def _tokenizer(checkpoint: Checkpoint) -> dict[str, str]:
    folder = checkpoint.tokenizer.parent
    return {} if folder == checkpoint.directory else {"tokenizer": str(folder)}


def _context(role: str, choice: LLMChoice, checkpoint: Checkpoint, profile: Profile) -> int:
    if profile.context in choice.options:
        raise ConfigurationError(
            f"--{role}-set {profile.context}: expected the context length as --{role}-context"
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


def _check_memory(profile: Profile, parsed: Mapping[str, GPUOptions]) -> None:
    """The LLMs' shares of each GPU's memory fit."""
    for gpu in sorted({gpu for one in parsed.values() for gpu in one.gpus.split(",")}):
        shares = {
            role: float(getattr(one, profile.memory))
            for role, one in parsed.items()
            if gpu in one.gpus.split(",")
        }
        if sum(shares.values()) > 1:
            got = " and ".join(f"{share:g} ({role})" for role, share in shares.items())
            raise ConfigurationError(
                f"GPU {gpu}: expected shares of its memory of at most 1 together, got {got}; give "
                "less with --small-memory or --large-memory, or other GPUs with --small-gpus or "
                "--large-gpus"
            )


def _settings(
    options: BuildOptions,
    profile: Profile,
    checkpoints: Mapping[str, Checkpoint],
    contexts: Mapping[str, int],
    parsed: Mapping[str, GPUOptions],
    in_backend: bool,
    say: Say,
) -> dict[str, Any]:
    sizes = {role: checkpoints[role].num_parameters for role in _ROLES}
    ratio = sizes["small"] / sizes["large"] if all(sizes.values()) else 0.1
    if ratio >= 1:
        say("warning: the small LLM is no smaller than the large one: it will save nothing")
    costs = {"small": round(min(max(ratio, 0.01), 1.0), 3), "large": 1.0}
    shared = set(parsed["small"].gpus.split(",")) & set(parsed["large"].gpus.split(","))
    if shared:
        say(
            "note: both LLMs run on the same GPU, and take turns there unless NVIDIA's MPS runs "
            "(`nvidia-cuda-mps-control -d`, before the server)"
        )
    llms = []
    for role in _ROLES:
        checkpoint = checkpoints[role]
        template = checkpoint.template(options.llms[role].template, f"--{role}-template")
        if end := checkpoint.missing_end(template):
            say(
                f"warning: {end} ends a turn in the prompt template {template}, but is no "
                f"eos_token_id of {checkpoint.directory}: answers of the {role} LLM may go on "
                "after it"
            )
        llms.append(
            {
                "name": f"{role}_llm",
                "revision": checkpoint.directory.name[:128],
                "cost": costs[role],
                "takes_examples": role == "small",
                "prior_quality": _PRIORS[role],
                "capacity": float(getattr(parsed[role], profile.batch) * parsed[role].copies),
                "pool": "gpus" if shared else "",
                "context_length": contexts[role],
                "prompt_template": template,
                "tokenizer": str(checkpoint.tokenizer),
            }
        )
    embedding: dict[str, Any] = {"model_dir": "embedder"}
    if in_backend:
        embedding["pad_to_multiple_of"] = _PAD
    return {"data_dir": "data", "embedding": embedding, "llms": llms}


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def _embedder(options: BuildOptions, output: Path, say: Say) -> None:
    model = output / options.profile / "embedder"
    in_backend = _runs_in_backend(model)
    form = options.embedder or _best_form()
    if in_backend:
        form = "fp32"  # Only the tokenizer model reads that folder then.
    say(f"building the embedding model ({'ONNX Runtime backend' if in_backend else form})")
    folder = output / "embedder"
    minilm.build(folder, form)
    if in_backend:
        shutil.copyfile(folder / MODEL_FILE, model / "1" / MODEL_FILE)


def _runs_in_backend(model: Path) -> bool:
    """Whether Triton's ONNX Runtime backend runs the embedder, not our python model."""
    return bool(model_config.read(model).backend == "onnxruntime")


def _best_form() -> Form:
    """The embedding model's fastest form that this environment has the packages for."""
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return "cuda"
    return "fast" if find_spec("openvino") is not None else "fp32"


def built_root(configuration: Path | None, profile: str) -> Path | None:
    """The folder of a configuration, if ``echolm build`` has put the profile's models there."""
    if configuration is None:
        return None
    folder = configuration.resolve().parent
    return folder if (folder / "core").is_dir() and (folder / profile).is_dir() else None
