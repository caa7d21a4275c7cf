"""What an embedder is: the contents of ``embedder.json`` beside ``model.onnx``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from echolm.errors import ConfigurationError

Runtime = Literal["onnxruntime", "openvino", "cuda"]
Precision = Literal["fp32", "bf16", "int8", "fast"]

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SPEC_FILE = "embedder.json"


@dataclass(frozen=True)
class EmbedderSpec:
    """One sentence-embedding model and how this machine runs it.

    Attributes:
        name: the model's identity. Vectors of equal names may be compared; ``runtime``
            and ``precision`` must not change them beyond rounding.
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
    """

    name: str
    dimension: int
    max_tokens: int
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    vocabulary: int | None = None
    source_sha256: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a value that cannot work."""
        self._expect("name", self.name, isinstance(self.name, str) and self.name != "", "a name")
        for key in ("dimension", "max_tokens", "vocabulary"):
            value = getattr(self, key)
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            self._expect(
                key, value, good or (key == "vocabulary" and value is None), "an integer > 0"
            )
        self._expect(
            "runtime",
            self.runtime,
            self.runtime in get_args(Runtime),
            f"one of {get_args(Runtime)}",
        )
        self._expect(
            "precision",
            self.precision,
            self.precision in get_args(Precision),
            f"one of {get_args(Precision)}",
        )
        fits = self.precision == "fp32" or self.runtime == "openvino"
        self._expect("precision", self.precision, fits, f"'fp32', as the runtime is {self.runtime}")

    def _expect(self, key: str, value: object, good: bool, expected: str) -> None:
        if not good:
            raise ConfigurationError(f"embedder: {key}: expected {expected}, got {value!r}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, directory: Path) -> EmbedderSpec:
        """Read ``embedder.json``.

        Raises:
            ConfigurationError: the file is missing, is not JSON, or has a wrong key or value.
        """
        path = directory / SPEC_FILE
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"embedder: {path} is missing; build it with scripts/build_embedder.py "
                f"--output {directory}"
            ) from None
        except ValueError as error:
            raise ConfigurationError(f"embedder: {path} is not JSON: {error}") from None
        keys = {
            field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)
        }
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"embedder: {path}: expected an object, got {type(values).__name__}"
            )
        unknown = sorted(values.keys() - keys.keys())
        missing = sorted(key for key, required in keys.items() if required and key not in values)
        if unknown or missing:
            raise ConfigurationError(
                f"embedder: {path}: unknown keys {unknown}, missing keys {missing}; "
                f"the keys are {sorted(keys)}"
            )
        return cls(**values)
