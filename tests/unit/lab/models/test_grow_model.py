"""A grown checkpoint computes what the original does: both run through a Llama in numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "grow_model.py"
VOCABULARY = 64
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
}
LARGER = "layers=4,hidden=96,heads=12,kv_heads=6,head_dim=16,feed_forward=72"
Array = NDArray[Any]


def checkpoint(folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """A random one, with norm weights and an epsilon that matter."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 0.01,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        **SMALL,
        **changes,
    }
    rng = np.random.default_rng(1)
    hidden, ff = config["hidden_size"], config["intermediate_size"]
    wide = config["num_attention_heads"] * config["head_dim"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens": (VOCABULARY, hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (VOCABULARY, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (wide, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, wide),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ff, hidden),
            "mlp.up_proj": (ff, hidden),
            "mlp.down_proj": (hidden, ff),
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    tensors = {
        f"{name}.weight": (rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 1)).astype(
            dtype
        )
        for name, shape in shapes.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def logits(folder: Path, tokens: list[int]) -> Array:
    """Of a Llama, FP64 [tokens, vocabulary]; its own reading of the published architecture."""
    config = json.loads((folder / "config.json").read_text())
    weights: dict[str, Array] = {}
    for file in folder.glob("*.safetensors"):
        weights.update({k: v.astype(np.float64) for k, v in load_file(file).items()})
    size, length = config["head_dim"], len(tokens)
    theta = config["rope_parameters"]["rope_theta"]
    angles = np.outer(np.arange(length), theta ** -(np.arange(0, size, 2) / size))
    cos, sin = (np.tile(f(angles), 2) for f in (np.cos, np.sin))
    mask = np.triu(np.full((length, length), -np.inf), 1)

    def norm(x: Array, name: str) -> Array:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return np.asarray(x / scale * weights[f"{name}.weight"])

    def heads(x: Array, name: str) -> Array:  # [heads, length, size]
        return np.asarray(
            (x @ weights[f"{name}.weight"].T).reshape(length, -1, size).swapaxes(0, 1)
        )

    def turned(x: Array) -> Array:
        half = size // 2
        return np.asarray(x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin)

    x = weights["model.embed_tokens.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k = (turned(heads(y, f"{layer}.self_attn.{p}_proj")) for p in "qk")
        v = heads(y, f"{layer}.self_attn.v_proj")
        k, v = (np.repeat(t, len(q) // len(t), 0) for t in (k, v))
        score = q @ k.swapaxes(1, 2) / np.sqrt(size) + mask
        share = np.exp(score - score.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        seen = (share @ v).swapaxes(0, 1).reshape(length, -1)
        x = x + seen @ weights[f"{layer}.self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (y @ weights[f"{layer}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return np.asarray(norm(x, "model.norm") @ head.T)


def grow(source: Path, target: Path, shape: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(source), str(target), f"--shape=3b,{shape}", *more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(LARGER, id="everything grows"),
        pytest.param(
            "layers=3,hidden=32,heads=4,kv_heads=4,head_dim=8,feed_forward=40", id="a copy of kv"
        ),
        pytest.param(
            "layers=2,hidden=24,heads=18,kv_heads=2,head_dim=24,feed_forward=41",
            id="more query heads each",
        ),
        pytest.param(
            "layers=2,hidden=24,heads=4,kv_heads=2,head_dim=8,feed_forward=40", id="the same"
        ),
    ],
)
def test_the_grown_model_computes_the_same_logits(tmp_path: Path, shape: str, tied: bool) -> None:
    source = checkpoint(tmp_path / "source", tie_word_embeddings=tied)
    done = grow(source, tmp_path / "grown", shape)
    assert done.returncode == 0, done.stderr
    tokens = np.random.default_rng(2).integers(VOCABULARY, size=30).tolist()
    expected = logits(source, tokens)
    assert expected.std() > 0.1
    # Only norm weights and queries were rounded, to float32.
    assert np.abs(logits(tmp_path / "grown", tokens) - expected).max() < 1e-5


def test_the_test_would_see_a_filler_that_counts(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    grow(source, tmp_path / "grown", LARGER)
    [file] = (tmp_path / "grown").glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.3.mlp.down_proj.weight"][0, -1] = 0.5  # a new unit of a new layer
    save_file(tensors, file)
    tokens = list(range(20))
    assert np.abs(logits(tmp_path / "grown", tokens) - logits(source, tokens)).max() > 1e-3


def test_weights_stay_bit_for_bit_where_the_factor_is_a_power_of_two(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "float16")
    shape = "layers=2,hidden=96,heads=4,kv_heads=2,head_dim=32,feed_forward=64"
    assert grow(source, tmp_path / "grown", shape).returncode == 0
    old = load_file(source / "model.safetensors")
    new = load_file(next((tmp_path / "grown").glob("*.safetensors")))
    assert {tensor.dtype for tensor in new.values()} == {np.dtype("float16")}
    name = "model.layers.1.input_layernorm.weight"  # sqrt(24 / 96)
    assert np.array_equal(new[name][:24] * 2, old[name])
    name = "model.layers.1.self_attn.q_proj.weight"  # sqrt(32 / 8), every 4th pair
    assert np.array_equal(new[name][[0, 4, 8, 12, 16, 20, 24, 28], :24], old[name][:8] * 2)
    name = "model.layers.1.mlp.gate_proj.weight"
    assert np.array_equal(new[name][:40, :24], old[name])


def test_the_new_weights_give_the_gpu_real_work(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    grow(source, tmp_path / "grown", LARGER)
    new = load_file(next((tmp_path / "grown").glob("*.safetensors")))
    old = load_file(source / "model.safetensors")
    expected = pytest.approx(old["model.layers.1.mlp.up_proj.weight"].std(), rel=0.2)
    for layer, part in ((0, "gate"), (3, "up"), (3, "gate")):
        filled = new[f"model.layers.{layer}.mlp.{part}_proj.weight"][40:]
        assert filled.std() == expected
        assert len(np.unique(filled)) > 0.9 * filled.size


def test_large_checkpoints_are_split_and_indexed(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    done = grow(source, tmp_path / "grown", LARGER, "--file-gib=0.0001")
    made = json.loads(done.stdout)
    index = json.loads((tmp_path / "grown" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    found = {k: v for file in files for k, v in load_file(tmp_path / "grown" / file).items()}
    assert set(found) == set(index["weight_map"])
    assert made["parameters"] == sum(tensor.size for tensor in found.values())
    assert index["metadata"]["total_size"] == 4 * made["parameters"]
    assert (tmp_path / "grown" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            "layers=2,hidden=24,heads=4,kv_heads=1,head_dim=8,feed_forward=40",
            "kv_heads of at least 2",
        ),
        ("layers=1", "layers of at least 2"),
        ("head_dim=12", "multiple of 8, got 12"),
        ("heads=5,kv_heads=2", "heads as a multiple of kv_heads"),
        ("width=9", "expected one of 0.5b, 1.5b, 3b"),
    ],
)
def test_a_shape_that_cannot_hold_the_model_is_refused(
    tmp_path: Path, shape: str, said: str
) -> None:
    done = grow(checkpoint(tmp_path / "source"), tmp_path / "grown", shape)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", model_type="qwen2")
    done = grow(source, tmp_path / "grown", LARGER)
    assert done.returncode == 2
    assert "expected a Llama" in done.stderr
