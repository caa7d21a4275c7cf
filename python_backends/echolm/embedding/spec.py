"""What an embedder is: the contents of ``embedder.json`` beside ``model.onnx``."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from echolm.errors import ConfigurationError

Runtime = Literal["onnxruntime", "openvino", "cuda"]
Precision = Literal["fp32", "bf16", "int8", "fast"]

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SPEC_FILE = "embedder.json"
MAX_PARTS = 3
"""Most parts in which a text is embedded; see :mod:`echolm.embedding.tokenizer`."""


@dataclass(frozen=True)
class EmbedderSpec:
    """One sentence-embedding model and how this machine runs it.

    Attributes:
        name: the model's identity. Vectors of equal names may be compared, if the same version of
            the window (:mod:`echolm.embedding.tokenizer`) made them of conversations or long texts;
            ``runtime`` and ``precision`` must not change them beyond rounding.
        dimension: length of an embedding.
        max_tokens: longest input, special tokens included; longer text is truncated.
        runtime: what runs ``model.onnx``: ONNX Runtime on the CPU, OpenVINO on the CPU, or
            ``cuda``: ONNX Runtime on an NVIDIA GPU.
        precision: of the matrix products. All but ``fp32`` need ``openvino``. On a CPU that
            cannot do it, FP32 takes its place. ``int8`` rounds weights and activations in
            groups of 64 inputs. ``fast`` is what suits the CPU: ``bf16`` with AMX, ``int8``
            with VNNI.
        vocabulary: token ids are below this; None leaves that to the runtime.
        source_sha256: of the weights the file was made from; empty when unknown.
        graph_version: of the graph that :mod:`echolm.embedding.minilm` makes of them; 0 for one of
            an earlier version of EchoLM, or that somebody else made.
    """

    name: str
    dimension: int
    max_tokens: int
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    vocabulary: int | None = None
    source_sha256: str = ""
    graph_version: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a value that cannot work."""
        self._expect("name", isinstance(self.name, str) and self.name != "", "a name")
        for key in ("dimension", "max_tokens", "vocabulary"):
            value = getattr(self, key)
            good = type(value) is int and value > 0  # A bool is no number here.
            self._expect(key, good or (key == "vocabulary" and value is None), "an integer > 0")
        version = self.graph_version
        self._expect("graph_version", type(version) is int and version >= 0, "an integer >= 0")
        for key, known in (("runtime", get_args(Runtime)), ("precision", get_args(Precision))):
            self._expect(key, getattr(self, key) in known, f"one of {known}")
        fits = self.precision == "fp32" or self.runtime == "openvino"
        self._expect("precision", fits, f"'fp32', as the runtime is {self.runtime}")

    def _expect(self, key: str, good: bool, expected: str) -> None:
        if not good:
            got = getattr(self, key)
            raise ConfigurationError(f"embedder: {key}: expected {expected}, got {got!r}")

    @classmethod
    def read(cls, directory: Path) -> EmbedderSpec:
        """Read ``embedder.json``; ConfigurationError if it is missing or wrong."""
        path = directory / SPEC_FILE
        check_built(path)
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"embedder: {path} is not JSON: {error}") from None
        if not isinstance(values, dict):
            got = type(values).__name__
            raise ConfigurationError(f"embedder: {path}: expected an object, got {got}")
        keys = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        unknown, missing = sorted(values.keys() - keys), sorted(required - values.keys())
        if unknown or missing:
            raise ConfigurationError(
                f"embedder: {path}: unknown keys {unknown}, missing keys {missing}; "
                f"the keys are {sorted(keys)}"
            )
        return cls(**values)


def check_built(path: Path, part: str = "embedder") -> None:
    """ConfigurationError if a file of the embedder is missing; ``part`` is who misses it."""
    if not path.is_file():
        raise ConfigurationError(
            f"{part}: {path} is missing; build it with scripts/build_embedder.py "
            f"--output {path.parent}"
        )
