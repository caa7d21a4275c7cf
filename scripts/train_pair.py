#!/usr/bin/env python3
"""Train the demo pair's LLMs from scratch on the generated workload.

    train_pair.py tokenizer --output build/pair/tokenizer.json
    train_pair.py model small --tokenizer build/pair/tokenizer.json --output build/pair/small
    train_pair.py model large --tokenizer build/pair/tokenizer.json --output build/pair/large

Needs torch, transformers, tokenizers and safetensors; one GPU of the H200
class for the defaults (about ten minutes each). ``--tiny`` runs all of it in
a minute on a CPU, to see that it works. The output is a Hugging Face
checkpoint (``LlamaForCausalLM``); scripts/convert_model.py makes an OpenVINO
model of it. Training ends after ``--minutes``; the learning rate follows the
clock. ``--init`` continues from a checkpoint's weights. The committed small LLM
was trained in two parts: 6 minutes on rows of up to 1,024 tokens, then 2.9
minutes with ``--init``, ``--rate 1.2e-3`` and this file's row lengths; the
committed large one with ``--minutes 5.2``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python_backends"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from echolm_lab.report.checkpoints import readable_by_transformers_4
from echolm_lab.tasks import Workload
from echolm_lab.tasks.episodes import (
    ImitationRows,
    KnowledgeRows,
    Trials,
    Turn,
    system_prompt,
)
from echolm_lab.tasks.grader import grade
from echolm_lab.tasks.prompt import ASSISTANT, END, PAD, SPECIAL_TOKENS, SYSTEM, USER, render
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bpe = commands.add_parser("tokenizer", help="train the shared tokenizer")
    bpe.add_argument("--output", type=Path, required=True)
    bpe.add_argument("--vocabulary", type=int, default=2560)
    bpe.add_argument("--rows", type=int, default=6000)
    one = commands.add_parser("model", help="train and evaluate one LLM")
    one.add_argument("which", choices=("large", "small"))
    one.add_argument("--tokenizer", type=Path, required=True)
    one.add_argument("--output", type=Path, required=True)
    one.add_argument("--minutes", type=float, default=6.0)
    one.add_argument("--steps", type=int, default=0, help="end earlier, after this many steps")
    one.add_argument(
        "--rate", type=float, default=0.0, help="peak learning rate; default: the recipe's"
    )
    one.add_argument("--weight-decay", type=float, default=0.05)
    one.add_argument("--warmup", type=int, default=200, help="steps")
    one.add_argument("--workers", type=int, default=7, help="processes that generate data")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--init", type=Path, help="checkpoint to continue from")
    one.add_argument("--requests", type=int, default=1000, help="requests per evaluated condition")
    one.add_argument("--tiny", action="store_true", help="a toy model, to test the code")
    one.add_argument("--shape", help="JSON of recipe fields to change, such as '{\"layers\": 5}'")
    one.add_argument("--no-compile", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments neither need torch nor wait for it

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

#: A space joins the word behind it only where that word is plain lower-case
#: English; slot values keep the same tokens wherever they stand.
SPLIT = r" \p{Ll}+(?=[\s,?]|$)|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


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


# --- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(vocabulary: int, rows: int) -> Tokenizer:
    """A byte-level BPE tokenizer with single digits over invented and catalogue text."""
    workload = Workload(seed=0)
    invented, known = ImitationRows(workload, Random(1)), KnowledgeRows(workload, Random(2))

    def texts() -> Iterator[str]:
        for _ in range(rows):
            for turn in invented.row(6) + known.row(3):
                yield turn.request
                yield turn.answer
            yield system_prompt(invented._rng)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


# --- data --------------------------------------------------------------------------------------


class Rows(torch.utils.data.IterableDataset):
    """Endless batches ``(tokens, targets)``, int64 [rows, length]; target -1 is not learnt."""

    def __init__(self, which: str, recipe: Recipe, tokenizer: str, seed: int) -> None:
        self.which, self.recipe, self.tokenizer, self.seed = which, recipe, tokenizer, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        rng = Random(self.seed * 7919 + (info.id if info else 0))
        tokenizer = Tokenizer.from_str(self.tokenizer)
        workload = Workload(seed=0)
        source = (ImitationRows if self.which == "small" else KnowledgeRows)(workload, rng)
        buckets = self.recipe.buckets
        while True:
            bucket = rng.choices(buckets, [b.share for b in buckets])[0]
            count = self.recipe.batch_tokens // bucket.length
            rows = []
            for _ in range(count):
                turns = source.alone() if bucket.length <= 192 else source.row(bucket.length // 95)
                system = system_prompt(rng) if rng.random() < 0.1 else None
                rows.append((turns, system))
            yield encode(tokenizer, rows, bucket.length)


def encode(
    tokenizer: Tokenizer, rows: list[tuple[list[Turn], str | None]], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and next-token targets of rows, cut or padded to ``length``."""
    end, assistant, user = (tokenizer.token_to_id(m) for m in (END, ASSISTANT, USER))
    pad, system_id = tokenizer.token_to_id(PAD), tokenizer.token_to_id(SYSTEM)
    texts = [t for turns, system in rows for x in turns for t in (x.request, x.answer)]
    texts += [system for _, system in rows if system is not None]
    coded = iter([e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)])
    bodies = [[(next(coded), next(coded), x.learn) for x in turns] for turns, _ in rows]
    tokens = np.full((len(rows), length + 1), pad, np.int64)
    learn = np.zeros((len(rows), length + 1), bool)
    for number, (body, (_, system)) in enumerate(zip(bodies, rows, strict=True)):
        ids: list[int] = [] if system is None else [system_id, *next(coded), end]
        marks = [False] * len(ids)
        for request, answer, wanted in body:
            ids += [user, *request, assistant, *answer, end]
            marks += [False] * (len(request) + 2) + [wanted] * (len(answer) + 1)
        ids, marks = ids[: length + 1], marks[: length + 1]
        tokens[number, : len(ids)] = ids
        learn[number, : len(ids)] = marks
    targets = np.where(learn[:, 1:], tokens[:, 1:], -1)
    return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets)


# --- model: Llama, with the parameter names of Hugging Face ------------------------------------


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


def hf_config(r: Recipe, tokenizer: Tokenizer):
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


def hf_model(model: Llama, r: Recipe, tokenizer: Tokenizer):
    """The trained weights as a ``LlamaForCausalLM``."""
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM(hf_config(r, tokenizer))
    missing, unexpected = other.load_state_dict(model.state(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"weights do not fit LlamaForCausalLM: {missing}, {unexpected}")
    other.tie_weights()
    other.generation_config.update(bos_token_id=None, do_sample=False)
    return other.eval()


# --- training ----------------------------------------------------------------------------------


def train(which: str, recipe: Recipe, tokenizer: Tokenizer, args: argparse.Namespace) -> Llama:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = Llama(recipe, tokenizer.get_vocab_size()).to(device)
    if args.init:
        from safetensors.torch import load_file

        weights = load_file(args.init / "model.safetensors")
        weights.pop("lm_head.weight", None)
        model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    print(
        f"{which}: {sum(p.numel() for p in model.parameters()):,} parameters on {device}",
        flush=True,
    )
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": args.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.rate,
        betas=(0.9, 0.97),
        fused=device == "cuda",
    )
    loader = iter(
        torch.utils.data.DataLoader(
            Rows(which, recipe, tokenizer.to_str(), args.seed + 1),
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=8 if args.workers else None,
            pin_memory=device == "cuda",
        )
    )
    step_model = (
        torch.compile(model, dynamic=False) if device == "cuda" and not args.no_compile else model
    )
    torch._dynamo.config.suppress_errors = True  # slower rather than not at all
    rate = args.rate or recipe.rate
    # Compile every row length before the clock starts.
    seen: set[int] = set()
    while len(seen) < len(recipe.buckets) and device == "cuda":
        tokens, targets = (t.to(device) for t in next(loader))
        if tokens.shape[1] not in seen:
            seen.add(tokens.shape[1])
            with torch.autocast(device, torch.bfloat16):
                step_model(tokens, targets).backward()
    optimizer.zero_grad(set_to_none=True)
    started = last = time.monotonic()
    budget, step, waited, total_tokens = args.minutes * 60, 0, 0.0, 0
    losses: dict[int, torch.Tensor] = {}
    while True:
        now = time.monotonic()
        done = min(1.0, max((now - started) / budget, step / args.steps if args.steps else 0.0))
        if done >= 1.0:
            break
        warm = min(1.0, (step + 1) / args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        batch = next(loader)
        waited += time.monotonic() - now
        tokens, targets = (t.to(device, non_blocking=True) for t in batch)
        with torch.autocast(device, torch.bfloat16):
            loss = step_model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        length = tokens.shape[1]
        losses[length] = (
            losses[length] * 0.95 + loss.detach() * 0.05 if length in losses else loss.detach()
        )
        step += 1
        total_tokens += tokens.numel()
        if step % 25 == 0 and time.monotonic() - last > 15:
            last = time.monotonic()
            shown = " ".join(f"{k}:{v.item():.4f}" for k, v in sorted(losses.items()))
            print(
                f"{which} step {step} {done:.0%} loss {shown} "
                f"{total_tokens / (last - started) / 1e6:.2f} Mtok/s waited {waited:.0f}s",
                flush=True,
            )
    print(
        f"{which}: {step} steps, {total_tokens / 1e6:.0f} M tokens, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return model


# --- evaluation --------------------------------------------------------------------------------


@torch.inference_mode()
def generate(
    model, tokenizer: Tokenizer, prompts: list[str], batch: int, limit: int = 170
) -> list[str]:
    """Greedy answers, in the order of ``prompts``."""
    device = model.device
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    coded = [e.ids for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: len(coded[n]))
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        width = max(len(coded[n]) for n in part)
        ids = torch.full((len(part), width), pad)
        mask = torch.zeros((len(part), width), dtype=torch.long)
        for row, n in enumerate(part):
            ids[row, width - len(coded[n]) :] = torch.tensor(coded[n])
            mask[row, width - len(coded[n]) :] = 1
        out = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        for n, row in zip(part, out[:, width:].tolist(), strict=True):
            answers[n] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return answers


CONDITIONS = {  # name: (fitting, distracting)
    "alone": (0, 0),
    "1 fitting": (1, 0),
    "2 fitting": (2, 0),
    "3 fitting": (3, 0),
    "4 fitting": (4, 0),
    "1 fitting + 1": (1, 1),
    "1 fitting + 3": (1, 3),
    "2 fitting + 2": (2, 2),
    "1 fitting + 6": (1, 6),
    "2 fitting + 11": (2, 11),
    "other intent x2": (0, 2),
}


def evaluate(which: str, model, tokenizer: Tokenizer, requests: int, conditions: list[str]) -> dict:
    """Mean score and share of exact answers by condition, domain, and seen or not."""
    workload = Workload(seed=0)
    trials = Trials(workload, workload.stream(requests, seed=77, phase="live"))
    report: dict[str, dict[str, list[float]]] = {}
    for name in conditions:
        rows = list(trials(*CONDITIONS[name]))
        texts = generate(
            model, tokenizer, [render(t.item.text, t.examples) for t in rows], batch_size(model)
        )
        groups: dict[str, list[float]] = {}
        for trial, text in zip(rows, texts, strict=True):
            score = grade(trial.item, text)
            for key in (
                "all",
                trial.item.domain,
                trial.item.kind,
                "seen" if trial.seen_by_small else "unseen",
            ):
                groups.setdefault(key, []).append(score)
        report[name] = {
            key: [round(float(np.mean(v)), 4), round(float(np.mean(np.array(v) == 1.0)), 4), len(v)]
            for key, v in groups.items()
        }
        print(
            f"{which} {name}: "
            + "  ".join(f"{k} {v[0]:.3f}/{v[1]:.3f} n={v[2]}" for k, v in report[name].items()),
            flush=True,
        )
        wrong = [(t, x) for t, x in zip(rows, texts, strict=True) if grade(t.item, x) < 1.0][:3]
        if name not in ("alone", "other intent x2") or which == "large":
            for trial, text in wrong:
                print(f"    asked {trial.item.text!r}", flush=True)
                print(f"    right {trial.item.answer!r}\n    got   {text!r}", flush=True)
    return report


def batch_size(model) -> int:
    return 512 if model.device.type == "cuda" else 16


def save(model: Llama, recipe: Recipe, tokenizer: Tokenizer, output: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    hf_model(model.cpu().half(), recipe, tokenizer).half().save_pretrained(output)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD
    ).save_pretrained(output)
    tokenizer.save(str(output / "tokenizer.json"))
    readable_by_transformers_4(output)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.command == "tokenizer":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(args.vocabulary, args.rows)
        tokenizer.save(str(args.output))
        print(json.dumps({"tokenizer": str(args.output), "entries": tokenizer.get_vocab_size()}))
        return 0
    recipe = (TINY if args.tiny else RECIPES)[args.which]
    recipe = replace(recipe, **json.loads(args.shape or "{}"))
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    model = train(args.which, recipe, tokenizer, args)
    args.output.mkdir(parents=True, exist_ok=True)
    tested = hf_model(model, recipe, tokenizer).to(next(model.parameters()).device)
    if torch.cuda.is_available():
        tested = tested.half()
    save(model, recipe, tokenizer, args.output)
    conditions = list(CONDITIONS) if args.which == "small" else ["alone"]
    report = evaluate(args.which, tested, tokenizer, args.requests, conditions)
    (args.output / "evaluation.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({"which": args.which, "alone": report["alone"]["all"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
