"""Grows a trained Llama checkpoint to a larger shape that computes the same function.

A small decoder that knows the demo workload then costs what a model of the target's shape costs,
and its answers stay what they were, so that quality and real-size speed can be measured together
(function-preserving growth: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016). The vocabulary
is not grown.

- Hidden dimensions are added that stay zero: of embedding and output projections the new rows are
  zero. RMSNorm's mean then is over more dimensions, so its weights are scaled by sqrt(d / d') and
  its epsilon by d / d'.
- A wider head keeps RoPE's frequencies: of m times as many pairs of dimensions every m-th has an
  old frequency, and the queries are zero in the others. Queries are scaled by sqrt(m), which the
  attention's 1 / sqrt(head dimension) takes off again.
- New heads, feed-forward units and layers work on random weights, and their outputs are multiplied
  by zero. Query heads stay with a copy of their key and value head.

Weights stay bit for bit what they were, in float16 or float32, except norm weights and queries,
which are rounded where their factor is no power of two.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from echolm.errors import ConfigurationError
from echolm.serving.checkpoint import read_json
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

Array = NDArray[Any]
_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
_POOL = (1 << 24) + 43
"""Random numbers that are drawn; filler repeats them. Odd, so that no two rows are the same."""


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder of the Llama kind."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            feed_forward=int(config["intermediate_size"]),
        )

    def config(self) -> dict[str, int]:
        """The shape as keys of ``config.json``."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.feed_forward,
        }


SHAPES = {
    "0.5b": Shape(24, 896, 14, 2, 64, 4864),
    "1.5b": Shape(28, 1536, 12, 2, 128, 8960),
    "3b": Shape(36, 2048, 16, 2, 128, 11008),
    "7b": Shape(28, 3584, 28, 4, 128, 18944),
    "14b": Shape(48, 5120, 40, 8, 128, 13824),
    "24b": Shape(40, 5120, 32, 8, 128, 32768),
    "32b": Shape(64, 5120, 40, 8, 128, 27648),
}
"""Those of the Qwen2.5 models of that size; 24b of Mistral Small."""


def parse_shape(text: str) -> Shape:
    """A name of ``SHAPES``, with fields to change after commas: ``14b,kv_heads=20``."""
    name, *changes = text.split(",")
    try:
        return replace(SHAPES[name], **{k: int(v) for k, v in (c.split("=") for c in changes)})
    except (KeyError, ValueError, TypeError):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(SHAPES)}, with changes such as 14b,kv_heads=20 to "
            f"{', '.join(field.name for field in fields(Shape))}; got {text!r}"
        ) from None


class Growth:
    """Where the weights of one shape go in another.

    Raises:
        ConfigurationError: the target cannot hold the source.
    """

    def __init__(self, source: Shape, target: Shape) -> None:
        for name, old in asdict(source).items():
            new = getattr(target, name)
            if name != "kv_heads" and new < old:
                raise ConfigurationError(f"shape: expected {name} of at least {old}, got {new}")
        if target.head_dim % source.head_dim:
            raise ConfigurationError(
                f"shape: expected head_dim as a multiple of {source.head_dim}, got "
                f"{target.head_dim}"
            )
        if target.heads % target.kv_heads:
            raise ConfigurationError(
                f"shape: expected heads as a multiple of kv_heads, got {target.heads} and "
                f"{target.kv_heads}"
            )
        self.source, self.target = source, target
        group, new_group = source.heads // source.kv_heads, target.heads // target.kv_heads
        copies = -(-group // new_group)
        if source.kv_heads * copies > target.kv_heads:
            raise ConfigurationError(
                f"shape: expected kv_heads of at least {source.kv_heads * copies} (for "
                f"{source.kv_heads} of them with {group} query heads each, and {new_group} in the "
                f"target), got {target.kv_heads}"
            )
        self.kv_heads = [k for k in range(source.kv_heads) for _ in range(copies)]
        """The source's key and value head in each of the target's first ones."""
        self.heads = [
            (h // group * copies + h % group // new_group) * new_group + h % group % new_group
            for h in range(source.heads)
        ]
        """The target's query head of each of the source's."""
        self.narrow = math.sqrt(source.hidden / target.hidden)
        self.sharpen = math.sqrt(target.head_dim / source.head_dim)

    def dimensions(self, head: int) -> Array:
        """The target's rows of one head that have the source's rows, pairs of RoPE kept."""
        step, half = self.target.head_dim // self.source.head_dim, self.source.head_dim // 2
        first = head * self.target.head_dim + step * np.arange(half)
        return np.concatenate([first, first + self.target.head_dim // 2])


class Grower:
    """Makes the target's tensors from the source's.

    Args:
        weights: the source's tensors by name.
        dtype: float16 or float32.
    """

    def __init__(self, growth: Growth, weights: Mapping[str, Array], seed: int) -> None:
        self._growth, self._weights = growth, weights
        self._dtype = weights["model.embed_tokens.weight"].dtype
        self._rng = np.random.default_rng(seed)
        self._pool = self._rng.standard_normal(_POOL, dtype=np.float32)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors of the target."""
        t = self._growth.target
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in self._weights:
                yield name, (len(self._weights[name]), t.hidden)
        wide, narrow = t.heads * t.head_dim, t.kv_heads * t.head_dim
        for layer in range(t.layers):
            for name, shape in {
                "input_layernorm": (t.hidden,),
                "self_attn.q_proj": (wide, t.hidden),
                "self_attn.k_proj": (narrow, t.hidden),
                "self_attn.v_proj": (narrow, t.hidden),
                "self_attn.o_proj": (t.hidden, wide),
                "post_attention_layernorm": (t.hidden,),
                "mlp.gate_proj": (t.feed_forward, t.hidden),
                "mlp.up_proj": (t.feed_forward, t.hidden),
                "mlp.down_proj": (t.hidden, t.feed_forward),
            }.items():
                yield f"model.layers.{layer}.{name}.weight", shape
        yield "model.norm.weight", (t.hidden,)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        """One tensor of the target, in the source's data type."""
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        old = self._weights.get(name)
        if len(shape) == 1:
            return self._norm(old, shape)
        if part in ("embed_tokens", "lm_head", "o_proj", "down_proj"):
            return self._output(part, old, shape)
        if old is None:  # a new layer
            like = f"model.layers.{self._growth.source.layers - 1}.{name.split('.', 3)[3]}"
            return self._filler(shape, self._weights[like])
        return self._input(part, old, shape)

    def _norm(self, old: Array | None, shape: tuple[int, ...]) -> Array:
        new = np.ones(shape, np.float32)
        if old is not None:
            new[: len(old)] = old
        return (new * self._growth.narrow).astype(self._dtype)

    def _output(self, part: str, old: Array | None, shape: tuple[int, ...]) -> Array:
        """What writes to hidden dimensions or reads them last: zero but for the source's."""
        new = np.zeros(shape, self._dtype)
        if old is None:
            return new
        columns: slice | Array = slice(old.shape[1])
        if part == "o_proj":
            columns = np.concatenate([self._growth.dimensions(h) for h in self._growth.heads])
        new[: len(old), columns] = old
        return new

    def _input(self, part: str, old: Array, shape: tuple[int, ...]) -> Array:
        """What reads hidden dimensions: the source's rows among random ones."""
        growth, new = self._growth, self._filler(shape, old)
        columns = old.shape[1]
        if part not in ("q_proj", "k_proj", "v_proj"):
            new[: len(old), :columns] = old
            return new
        per_head = old.reshape(-1, growth.source.head_dim, columns)
        if part == "q_proj":
            for head, weight in zip(growth.heads, per_head, strict=True):
                size = growth.target.head_dim
                new[head * size : (head + 1) * size] = 0
                scaled = weight.astype(np.float32) * growth.sharpen
                new[growth.dimensions(head), :columns] = scaled.astype(self._dtype)
            return new
        for head, source in enumerate(growth.kv_heads):
            new[growth.dimensions(head), :columns] = per_head[source]
        return new

    def _filler(self, shape: tuple[int, ...], like: Array) -> Array:
        """Random weights as large as those of another tensor."""
        start = int(self._rng.integers(_POOL))
        numbers = np.roll(self._pool, start) * np.float32(like.astype(np.float32).std())
        return np.resize(numbers.astype(self._dtype), shape)


def grow(source: Path, output: Path, shape: Shape, seed: int, file_bytes: int) -> dict[str, Any]:
    """Write the grown checkpoint; returns what it is.

    Raises:
        ConfigurationError: the source is no such checkpoint, or does not fit into the shape.
    """
    config = read_json(source / "config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    biased = config.get("attention_bias") or config.get("mlp_bias")
    if config.get("model_type") != "llama" or kind != "default" or biased:
        raise ConfigurationError(
            f"{source}: expected a Llama without biases and with plain RoPE, got model_type "
            f"{config.get('model_type')!r}, RoPE {kind!r}, biases: {bool(biased)}"
        )
    old = Shape.of(config)
    growth = Growth(old, shape)
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        weights = _Weights(source, opened)
        grower = Grower(growth, weights, seed)
        names = list(grower.shapes())
        itemsize = weights["model.embed_tokens.weight"].itemsize
        files = _split(names, itemsize, file_bytes)
        index: dict[str, str] = {}
        for number, part in enumerate(files, 1):
            file = f"model-{number:05}-of-{len(files):05}.safetensors"
            save_file(
                {name: grower.tensor(name, size) for name, size in part},
                output / file,
                metadata={"format": "pt"},
            )
            index.update({name: file for name, _ in part})
            print(f"{output / file}: {len(part)} tensors", file=sys.stderr, flush=True)
    count = sum(math.prod(size) for _, size in names)
    _write(
        output / "model.safetensors.index.json",
        {"metadata": {"total_size": count * itemsize}, "weight_map": index},
    )
    epsilon = config.get("rms_norm_eps", 1e-6) * old.hidden / shape.hidden
    _write(output / "config.json", {**config, **shape.config(), "rms_norm_eps": epsilon})
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    return {"output": str(output), "parameters": count, "shape": asdict(shape)}


class _Weights(Mapping[str, Array]):
    """The tensors of a checkpoint, each read when it is asked for."""

    def __init__(self, source: Path, opened: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        for file in sorted(source.glob("*.safetensors")):
            tensors = opened.enter_context(safe_open(file, framework="numpy"))
            self._files.update(dict.fromkeys(tensors.keys(), tensors))
        if "model.embed_tokens.weight" not in self._files:
            raise ConfigurationError(
                f"{source}: expected safetensors with model.embed_tokens.weight, got "
                f"{len(self._files)} tensors"
            )

    def __getitem__(self, name: str) -> Array:
        tensor: Array = self._files[name].get_tensor(name)
        if tensor.dtype not in (np.float16, np.float32):
            raise ConfigurationError(f"{name}: expected float16 or float32, got {tensor.dtype}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _split(
    names: list[tuple[str, tuple[int, ...]]], itemsize: int, most: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors of each file, of at most so many bytes unless one tensor is larger."""
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in names:
        bytes_ = math.prod(shape) * itemsize
        if files[-1] and size + bytes_ > most:
            files.append([])
            size = 0
        files[-1].append((name, shape))
        size += bytes_
    return files


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
