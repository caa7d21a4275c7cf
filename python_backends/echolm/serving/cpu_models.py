"""LLMs for the engine ``openvino``: what can be served, what must be converted, what it needs."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from echolm.engines.openvino import MODEL_FILES
from echolm.engines.prefix_cache import BLOCK_TOKENS
from echolm.errors import ConfigurationError
from echolm.llm import gguf_tokenizer
from echolm.llm.chat_template import load_chat_template
from echolm.llm.gguf import QUANTIZATIONS, GGUFFile, read_gguf
from echolm.serving import conversion
from echolm.serving.checkpoint import Checkpoint, read_json
from echolm.serving.model_source import ModelSource, check_weights

_READ_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_READ_QUANTIZATIONS = {"F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"}
"""What OpenVINO GenAI 2026.4 reads of a GGUF file itself; with Q5_0 it ends with
``gguf_tensor_to_f16 failed``."""
_CONVERTED_ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "falcon", "phi3", "stablelm"),
    *("gpt2", "starcoder2", "nemotron", "gemma2", "gemma3"),
)
"""Decoders that transformers 5.0 reads from GGUF files."""
_CACHE_BYTES, _MOST_BLOCKS = 1 << 30, 4_096
"""Most memory, and most blocks, of a KV cache: with many small blocks each request takes longer."""
_CONVERSION_BYTES = 6
"""Of memory for a parameter: the checkpoint, the exported model and the one with small weights."""
_SERVED = {"int8": 1.1, "int4": 0.7}
"""Bytes of memory for a parameter."""
_BESIDE = 2 << 30
"""Bytes that everything else takes: Triton, Milvus Lite, the embedding model, KV caches in use."""


@dataclass(frozen=True)
class CPUModel:
    """An LLM that can be served on the CPU.

    Attributes:
        is_converted: whether it must be converted first.
        num_parameters: those that a token meets, which of a mixture of experts are the fewest.
        num_stored: all, which memory must hold.
        file: the header, if it is a GGUF file.
    """

    source: ModelSource
    weights: conversion.Weights
    is_converted: bool
    num_parameters: int
    num_stored: int
    file: GGUFFile | None = None

    @classmethod
    def check(cls, source: ModelSource, weights: conversion.Weights, option: str) -> CPUModel:
        """Check what can be known without loading it.

        Raises:
            ConfigurationError: the engine cannot load it, and nothing can convert it.
        """
        if source.kind == "gguf":
            file = read_gguf(source.path)
            is_read = _is_read(file)
            if not is_read:
                _check_convertible(file, option)
            count = file.num_parameters
            return cls(source, weights, not is_read, count, count, file)
        check_weights(source)
        if source.kind == "openvino":
            files = [source.path / name for name in (*MODEL_FILES, "tokenizer.json")]
            if missing := [file for file in files if not file.is_file()]:
                raise ConfigurationError(
                    f"{option} {source.path}: expected an OpenVINO GenAI folder with its tokenizer "
                    f"and tokenizer.json, got no {missing[0].name}; export it with "
                    "`optimum-cli export openvino`, or name the checkpoint itself"
                )
        checkpoint = Checkpoint.read(source.path)
        if checkpoint.built:
            raise ConfigurationError(
                f"{option} {source.path}: expected a checkpoint, got an engine built for "
                "TensorRT-LLM; serve it with --profile tensorrt_llm"
            )
        stored = 4 if "float32" in str(_types(source.path)) else 2
        num_stored = max(source.num_bytes // stored, checkpoint.num_parameters)
        active = checkpoint.num_parameters or num_stored
        return cls(source, weights, source.kind == "checkpoint", active, num_stored)

    @property
    def bytes_to_convert(self) -> int:
        return _CONVERSION_BYTES * self.num_stored if self.is_converted else 0

    @property
    def bytes_to_serve(self) -> int:
        """Of the weights and of a KV cache."""
        weights = self.source.num_bytes * 1.2
        if self.is_converted:
            weights = _SERVED[self.weights] * self.num_stored
        return int(weights) + _CACHE_BYTES

    def described(self, read: Callable[[Checkpoint], Any]) -> Any:
        """What a function reads of the checkpoint, as far as that is there before the conversion.

        None if only the conversion can tell.
        """
        if self.file is None:
            return read(Checkpoint.read(self.source.path))
        if not gguf_tokenizer.is_known(self.file):
            return None
        with tempfile.TemporaryDirectory() as folder:
            write_description(self.file, Path(folder))
            return read(Checkpoint.read(Path(folder)))

    def make(self, folder: Path, converter: Path | None, say: Callable[[str], None]) -> Path:
        """Put what the engine loads into a folder; returns the folder that it is in.

        Args:
            converter: the interpreter that converts.
        """
        if self.source.kind == "openvino":
            return self.source.path
        if self.is_converted:
            assert converter is not None
            conversion.convert(self.source.path, folder, self.weights, converter, say)
        if self.file is not None and gguf_tokenizer.is_known(self.file):
            folder.mkdir(parents=True, exist_ok=True)
            write_description(self.file, folder, with_config=not self.is_converted)
        elif self.file is not None:
            gguf_tokenizer.complete_tokenizer(self.file, folder)
        return folder


def check_memory(models: list[CPUModel]) -> None:
    """The machine's memory holds the LLMs, and each conversion; ConfigurationError if not."""
    total = _memory()
    for model in models:
        if model.bytes_to_convert > total:
            billions = model.num_stored / 1e9
            raise ConfigurationError(
                f"checkpoint {model.source.path}: expected about "
                f"{model.bytes_to_convert / 2**30:.0f} GiB of memory to convert its {billions:.1f} "
                f"billion parameters, got {total / 2**30:.0f} GiB; convert it on a "
                "larger machine (`optimum-cli export openvino --weight-format int4`) and name the "
                "folder, or take a smaller LLM"
            )
    needed = sum(model.bytes_to_serve for model in models) + _BESIDE
    if needed > total:
        names = " and ".join(model.source.name for model in models)
        raise ConfigurationError(
            f"{names}: expected about {needed / 2**30:.1f} GiB of memory to serve them, got "
            f"{total / 2**30:.1f} GiB; take smaller LLMs, or --weights int4"
        )


def _memory() -> int:
    """Bytes of the machine's memory, or of the container's."""
    limits = [psutil.virtual_memory().total]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def write_description(file: GGUFFile, folder: Path, with_config: bool = True) -> None:
    """Write what a checkpoint's folder says of an LLM beside its weights.

    Args:
        with_config: whether ``config.json`` and ``generation_config.json`` are written as well.
    """
    gguf_tokenizer.write_tokenizer(file, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if not with_config:
        return
    heads = int(file.of_model("attention.head_count", 0))
    width = int(file.of_model("embedding_length", 0))
    config = {
        "model_type": file.architecture,
        "max_position_embeddings": file.of_model("context_length"),
        "num_hidden_layers": file.of_model("block_count"),
        "hidden_size": width,
        "intermediate_size": file.of_model("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.of_model("attention.head_count_kv", heads),
        "head_dim": file.of_model("attention.key_length", width // heads if heads else 0),
        "vocab_size": len(file.of_tokenizer("tokens", ())),
    }
    ids = {"eos_token_id": file.of_tokenizer("eos_token_id")}
    for name, values in (("config", {**config, **ids}), ("generation_config", ids)):
        text = json.dumps(values, indent=2)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def complete_end_ids(folder: Path, template: str) -> None:
    """Have every token that ends an answer in ``generation_config.json``, where the engine looks.

    Those are what the checkpoint's files name, and what ends a turn in the chat template.
    """
    checkpoint = Checkpoint.read(folder)
    ids = set(checkpoint.end_ids)
    end = load_chat_template(template, checkpoint.tokenizer).facts.end
    if end in checkpoint.token_ids:
        ids.add(checkpoint.token_ids[end])
    if not ids:
        raise ConfigurationError(
            f"checkpoint {folder}: expected a token that ends an answer (eos_token_id in "
            "generation_config.json or config.json), got none: answers would never end; set it in "
            "the checkpoint"
        )
    file = folder / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    text = json.dumps({**values, "eos_token_id": sorted(ids)}, indent=2)
    file.write_text(f"{text}\n", encoding="utf-8")


def kv_blocks(folder: Path, context: int) -> int:
    """Blocks of an LLM's KV cache: what a gigabyte holds, and one whole context at least."""
    config = read_json(folder / "config.json")
    config = config.get("text_config") or config
    try:
        heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        # OpenVINO keeps 2 bytes a number on CPUs whatever the precision of inference.
        block = 4 * int(config["num_hidden_layers"]) * heads * int(size) * BLOCK_TOKENS
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        block = 1 << 20
    return max(min(_CACHE_BYTES // max(block, 1), _MOST_BLOCKS), context // BLOCK_TOKENS + 2)


def _is_read(file: GGUFFile) -> bool:
    """Whether the engine reads the file as it is."""
    known = file.architecture in _READ_ARCHITECTURES and gguf_tokenizer.is_known(file)
    known = known and gguf_tokenizer.is_byte_level(file)
    return known and set(file.tensor_types) <= _READ_QUANTIZATIONS


def _check_convertible(file: GGUFFile, option: str) -> None:
    if file.architecture not in _CONVERTED_ARCHITECTURES:
        raise ConfigurationError(
            f"{option} {file.path}: expected one of the architectures "
            f"{', '.join(_CONVERTED_ARCHITECTURES)}, got {file.architecture or 'none'!r}; name the "
            "Hugging Face checkpoint that the file was made of"
        )
    unknown = sorted(set(file.tensor_types) - set(QUANTIZATIONS.values()))
    if unknown:
        raise ConfigurationError(
            f"{option} {file.path}: expected tensors of the types "
            f"{', '.join(QUANTIZATIONS.values())}, got the type number {unknown[0]}; name the "
            "Hugging Face checkpoint that the file was made of, or another quantization of it"
        )
    if not file.of_tokenizer("tokens"):
        raise ConfigurationError(
            f"{option} {file.path}: expected a file with its tokenizer, got none; name the Hugging "
            "Face checkpoint that it was made of"
        )


def _types(folder: Path) -> list[Any]:
    config = read_json(folder / "config.json")
    return [config.get("dtype"), config.get("torch_dtype")]
