"""The pair's architecture: a Llama in torch, with the parameter names of Hugging Face."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from echolm_lab.tasks.prompt import END, PAD


@dataclass(frozen=True)
class Bucket:
    """Rows of one length: ``share`` of the batches, ``length`` tokens each."""

    share: float
    length: int


@dataclass(frozen=True)
class Recipe:
    """Shape and training settings of one LLM of the pair."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    rate: float
    batch_tokens: int
    buckets: tuple[Bucket, ...]
    head_dim: int = 64
    rope_theta: float = 10000.0
    positions: int = 2048


RECIPES = {
    # One key/value head: on a CPU, reading the cache is most of a decoding step.
    "small": Recipe(
        3,
        192,
        4,
        1,
        512,
        2.5e-3,
        98304,
        (Bucket(0.3, 2048), Bucket(0.37, 1024), Bucket(0.25, 384), Bucket(0.08, 192)),
    ),
    "large": Recipe(
        15,
        768,
        12,
        12,
        2048,
        9e-4,
        65536,
        (Bucket(0.55, 192), Bucket(0.3, 1024), Bucket(0.15, 2048)),
    ),
}
TINY = {
    "small": Recipe(
        2, 64, 2, 1, 128, 2e-3, 2048, (Bucket(0.7, 512), Bucket(0.3, 192)), head_dim=32
    ),
    "large": Recipe(
        2, 128, 4, 4, 256, 2e-3, 2048, (Bucket(0.7, 192), Bucket(0.3, 512)), head_dim=32
    ),
}


class Attention(nn.Module):
    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = r.heads, r.kv_heads, r.head_dim
        self.q_proj = nn.Linear(r.hidden, r.heads * r.head_dim, bias=False)
        self.k_proj = nn.Linear(r.hidden, r.kv_heads * r.head_dim, bias=False)
        self.v_proj = nn.Linear(r.hidden, r.kv_heads * r.head_dim, bias=False)
        self.o_proj = nn.Linear(r.heads * r.head_dim, r.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, 1)
            v = v.repeat_interleave(self.heads // self.kv_heads, 1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves rotated as Llama does."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return (x * cos + turned * sin).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(r.hidden, r.feed_forward, bias=False)
        self.up_proj = nn.Linear(r.hidden, r.feed_forward, bias=False)
        self.down_proj = nn.Linear(r.feed_forward, r.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(r.hidden, eps=1e-6)
        self.self_attn = Attention(r)
        self.post_attention_layernorm = nn.RMSNorm(r.hidden, eps=1e-6)
        self.mlp = Mlp(r)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids [rows, length] and targets of the same shape → mean loss."""

    def __init__(self, r: Recipe, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, r.hidden)
        self.layers = nn.ModuleList(Layer(r) for _ in range(r.layers))
        self.norm = nn.RMSNorm(r.hidden, eps=1e-6)
        pace = r.rope_theta ** -(torch.arange(0, r.head_dim, 2).float() / r.head_dim)
        angles = torch.outer(torch.arange(r.positions).float(), pace).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * r.layers) if deep else 0.02
                nn.init.normal_(weight, std=std if r.hidden > 256 else std * 2)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = functional.linear(self.norm(x), self.embed_tokens.weight)
        return functional.cross_entropy(
            logits.float().view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters by their Hugging Face names."""
        return {f"model.{name}": p.detach() for name, p in self.named_parameters()}


def hf_config(r: Recipe, tokenizer: Tokenizer) -> Any:
    """The recipe's ``LlamaConfig``."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=r.hidden,
        intermediate_size=r.feed_forward,
        num_hidden_layers=r.layers,
        num_attention_heads=r.heads,
        num_key_value_heads=r.kv_heads,
        head_dim=r.head_dim,
        max_position_embeddings=r.positions,
        rms_norm_eps=1e-6,
        rope_theta=r.rope_theta,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def hf_model(model: Llama, r: Recipe, tokenizer: Tokenizer) -> Any:
    """The trained weights as a ``LlamaForCausalLM``."""
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM(hf_config(r, tokenizer))
    missing, unexpected = other.load_state_dict(model.state(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"weights do not fit LlamaForCausalLM: {missing}, {unexpected}")
    other.tie_weights()
    other.generation_config.update(bos_token_id=None, do_sample=False)
    return other.eval()
