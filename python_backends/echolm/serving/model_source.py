"""What an LLM is built from: a folder, a GGUF file, or a name on the hub, which is fetched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echolm.errors import ConfigurationError
from echolm.llm.gguf import SUFFIX

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.engine")
_LOADED = ("model*.safetensors", *_WEIGHTS)
"""The first that are there are loaded; some checkpoints have the same weights in several forms."""
OPENVINO_MODEL = "openvino_model.xml"


@dataclass(frozen=True)
class ModelSource:
    """Where an LLM is.

    Attributes:
        kind: ``checkpoint``: a folder as Hugging Face's libraries write it, or with an engine that
            TensorRT-LLM built; ``openvino``: a folder that OpenVINO GenAI loads; ``gguf``: a file.
        name: what the user knows it by.
    """

    kind: Literal["checkpoint", "openvino", "gguf"]
    path: Path
    name: str

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        if self.kind == "gguf":
            return self.path.stat().st_size
        patterns = ("openvino_model.bin",) if self.kind == "openvino" else _LOADED
        sizes = (sum(file.stat().st_size for file in self.path.glob(one)) for one in patterns)
        return next(filter(None, sizes), 0)


def find_model(model: str, option: str) -> ModelSource:
    """What a name stands for; a name on the hub is fetched into Hugging Face's cache.

    Args:
        option: that names it, for messages.

    Raises:
        ConfigurationError: it is nothing that can be served, or could not be fetched.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != SUFFIX:
            raise ConfigurationError(
                f"{option} {model}: expected a folder, a {SUFFIX} file or a name on the hub, got "
                f"a file of another kind"
            )
        return ModelSource("gguf", path.resolve(), path.stem)
    if path.is_dir():
        return _in_folder(path.resolve(), path.resolve().name, option)
    if _HUB_ID.fullmatch(model):
        return _in_folder(_fetched(model, option), model.rpartition("/")[2], option)
    raise ConfigurationError(
        f"{option} {model}: expected a folder, a {SUFFIX} file or a name on the hub "
        "(organization/name), got nothing there; correct it"
    )


def check_weights(source: ModelSource) -> None:
    """A folder has its weights, all of them; ConfigurationError if not."""
    if source.kind != "checkpoint":
        return
    folder = source.path
    for index in folder.glob("*.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            message = f"{index}: expected an index of weights, got: {error}"
            raise ConfigurationError(message) from error
        missing = sorted(part for part in parts if not (folder / str(part)).is_file())
        if missing:
            raise ConfigurationError(
                f"checkpoint {folder}: expected all {len(parts)} files of {index.name}, got no "
                f"{missing[0]}; fetch the rest: `hf download NAME --local-dir {folder}`"
            )
    if not source.num_bytes:
        expected = ", ".join(_WEIGHTS)
        raise ConfigurationError(
            f"checkpoint {folder}: expected weights ({expected}), got none; fetch the model: "
            f"`hf download NAME --local-dir {folder}` (with Git LFS: `git lfs pull`)"
        )


def _in_folder(folder: Path, name: str, option: str) -> ModelSource:
    if (folder / OPENVINO_MODEL).is_file():
        return ModelSource("openvino", folder, name)
    if (folder / "config.json").is_file():
        return ModelSource("checkpoint", folder, name)
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        return ModelSource("gguf", files[0], files[0].stem)
    got = f"{len(files)} {SUFFIX} files; name one of them" if files else "none of them"
    raise ConfigurationError(
        f"{option} {folder}: expected a checkpoint (config.json), an OpenVINO model "
        f"({OPENVINO_MODEL}) or one {SUFFIX} file, got {got}"
    )


def _fetched(model: str, option: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_FETCHED))
    except LocalEntryNotFoundError as error:
        got, mend = "no connection to it", "connect, or fetch it elsewhere"
        problem: Exception = error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        got = f"status {status}"
        mend = "correct the name, or log in to what is private or gated (`hf auth login`)"
        problem = error
    except (OSError, ValueError) as error:
        got, mend, problem = str(error), "connect, or fetch it elsewhere", error
    raise ConfigurationError(
        f"{option} {model}: expected a folder or file there, or a model of that name on the hub, "
        f"got {got}; {mend}: `hf download {model} --local-dir DIR`, and name the folder"
    ) from problem
