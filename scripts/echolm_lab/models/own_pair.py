"""Two LLMs of yours as EchoLM serves them: OpenVINO models in folders, or LLMs of other servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tomli_w
from echolm.engines.openvino import MODEL_FILES
from echolm.errors import ConfigurationError
from echolm.serving import model_config
from echolm.serving.checkpoint import Checkpoint
from echolm.serving.serve import model_repository_root

_CONTEXT = 8_192
_LEAST_COST, _COST = 0.01, 0.1
_TEMPLATE = ("local", "small_llm")  # whose configuration every LLM here gets


def write_pair(small: str, large: str, folder: Path, capacity: int) -> Path:
    """Write an ``echolm.toml`` and a model repository beside it; gives the former.

    Args:
        small, large: the folder of an OpenVINO model, or ``http(s)://host:port/v1#NAME`` for an LLM
            of an OpenAI-compatible server.
        folder: is replaced.
        capacity: requests in flight from which on an LLM counts as full.

    Raises:
        ConfigurationError: an LLM cannot be used.
    """
    # Everything is checked before anything is written.
    found = {role: _checkpoint(role, model) for role, model in _by_role(small, large)}
    root = model_repository_root(None)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "core", folder / "core")
    shutil.copytree(root / "remote", folder / "local")  # the embedder
    sizes = {role: one.num_parameters if one else 0 for role, one in found.items()}
    ratio = sizes["small"] / sizes["large"] if all(sizes.values()) else _COST
    costs = {"small": min(1.0, max(_LEAST_COST, round(ratio, 3))), "large": 1.0}
    sections = []
    for role, model in _by_role(small, large):
        checkpoint = found[role]
        section: dict[str, Any] = {
            "name": f"{role}_llm",
            "cost": costs[role],
            "takes_examples": role == "small",
            "capacity": float(capacity),
        }
        if checkpoint is None:
            url, _, name = model.partition("#")
            section |= {"contract": "openai", "url": url, "remote_model": name}
            section["context_length"] = _CONTEXT
        else:
            _write_model(root, folder / "local" / f"{role}_llm", checkpoint)
            section |= {
                "revision": checkpoint.directory.name[:128],
                "pool": "cpu",
                "context_length": min(_CONTEXT, checkpoint.context_length),
                "tokenizer": str(checkpoint.tokenizer),
            }
            if template := checkpoint.chat_template("", f"--{role}"):
                section["chat_template"] = template
        sections.append(section)
    file = folder / "echolm.toml"
    file.write_text(tomli_w.dumps({"llms": sections}), encoding="utf-8")
    return file


def _by_role(small: str, large: str) -> tuple[tuple[str, str], ...]:
    return ("small", small), ("large", large)


def _checkpoint(role: str, model: str) -> Checkpoint | None:
    """The checkpoint in a folder; None for an LLM of another server."""
    if model.startswith(("http://", "https://")):
        if not model.partition("#")[2]:
            raise ConfigurationError(
                f"--{role}: expected http(s)://host:port/v1#NAME with the LLM's name at its "
                f"server, got {model}"
            )
        return None
    folder = Path(model).expanduser()
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"--{role}: expected the folder of an OpenVINO model or http(s)://host:port/v1#NAME, "
            f"got {model}, which lacks {missing[0]}; make one of a checkpoint "
            "with echolm build --profile local, or give --config with the echolm.toml of LLMs "
            "that another engine runs"
        )
    checkpoint = Checkpoint.read(folder)
    checkpoint.chat_template("", f"--{role}")
    return checkpoint


def _write_model(root: Path, model: Path, checkpoint: Checkpoint) -> None:
    shutil.copytree(
        root.joinpath(*_TEMPLATE), model, ignore=shutil.ignore_patterns("openvino", "__pycache__")
    )
    config = model_config.read(model)
    config.parameters.clear()
    config.parameters["engine"].string_value = "openvino"
    config.parameters["model_dir"].string_value = str(checkpoint.directory)
    context = min(_CONTEXT, checkpoint.context_length)
    config.parameters["context_length"].string_value = str(context)
    model_config.write(model, config)
