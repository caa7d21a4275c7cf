"""Trains one LLM of the pair from scratch on rows that the workload generates."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from echolm_lab.models.checkpoints import readable_by_transformers_4
from echolm_lab.models.llama import Llama, Recipe, hf_model
from echolm_lab.tasks import Workload
from echolm_lab.tasks.episodes import ImitationRows, KnowledgeRows, Turn, system_prompt
from echolm_lab.tasks.prompt import ASSISTANT, END, PAD, SYSTEM, USER


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
    pad, system_id, user, assistant, end = (
        _marker_id(tokenizer, marker) for marker in (PAD, SYSTEM, USER, ASSISTANT, END)
    )
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


def _marker_id(tokenizer: Tokenizer, marker: str) -> int:
    token_id = tokenizer.token_to_id(marker)
    if token_id is None:
        raise ValueError(f"tokenizer: expected a token {marker}, got none; train it anew")
    return token_id


def train(which: str, recipe: Recipe, tokenizer: Tokenizer, args: argparse.Namespace) -> Llama:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model: Llama = Llama(recipe, tokenizer.get_vocab_size()).to(device)
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


def save(model: Llama, recipe: Recipe, tokenizer: Tokenizer, output: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    hf_model(model.cpu().half(), recipe, tokenizer).half().save_pretrained(output)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD
    ).save_pretrained(output)
    tokenizer.save(str(output / "tokenizer.json"))
    readable_by_transformers_4(output)
