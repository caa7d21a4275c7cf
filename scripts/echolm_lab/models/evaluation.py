"""How well a trained LLM of the pair answers, alone and with examples, in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from echolm_lab.tasks import Workload, grade
from echolm_lab.tasks.episodes import Trials
from echolm_lab.tasks.prompt import END, PAD, render


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Tokenizer, prompts: list[str], batch: int, limit: int = 170
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


CONDITIONS = {  # name: (relevant, distracting)
    "alone": (0, 0),
    "1 relevant": (1, 0),
    "2 relevant": (2, 0),
    "3 relevant": (3, 0),
    "4 relevant": (4, 0),
    "1 relevant + 1": (1, 1),
    "1 relevant + 3": (1, 3),
    "2 relevant + 2": (2, 2),
    "1 relevant + 6": (1, 6),
    "2 relevant + 11": (2, 11),
    "other intent x2": (0, 2),
}


def evaluate(
    which: str, model: Any, tokenizer: Tokenizer, requests: int, conditions: list[str]
) -> dict[str, dict[str, list[float]]]:
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


def batch_size(model: Any) -> int:
    return 512 if model.device.type == "cuda" else 16
