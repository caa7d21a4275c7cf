#!/usr/bin/env python3
"""How examples should stand in a prompt: scores of a real LLM by `examples.format`.

Requests for shell commands (NL2Bash) alone and behind two earlier ones of the same caller. Prints
a table of mean chrF and of differences to the default, and ends with one JSON line. Answers that
stand in --output are not asked for again, so that a long measurement may be done in pieces; the
file is of one LLM, seed, pool and count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from echolm.errors import ConfigurationError
from echolm.serving.serve import prepare_embedder
from echolm.settings import Settings
from echolm_lab.experiments.arguments import at_least_one
from echolm_lab.experiments.example_format import (
    FORMS,
    Key,
    Llm,
    Trial,
    command_in,
    kept_scores,
    trials,
)
from echolm_lab.experiments.simulation import CachedEmbedder
from echolm_lab.tasks.chrf import chrf
from rich.console import Console

_TASKS = {"one turn": 0, "three turns": 2}
_BATCH = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("llm", type=Path, help="an OpenVINO folder with its chat template")
    parser.add_argument("--requests", type=Path, required=True, help="one request a line")
    parser.add_argument("--answers", type=Path, required=True, help="their answers, line by line")
    parser.add_argument("--count", type=at_least_one, default=150, help="requests of each kind")
    parser.add_argument("--pool", type=at_least_one, default=5_000, help="lines that are read")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one an answer")
    parser.add_argument("--seconds", type=at_least_one, default=10**6, help="stop after these")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = Settings()
    prepare_embedder(settings, Console(stderr=True).print)
    lines = (file.read_text("utf-8").splitlines() for file in (options.requests, options.answers))
    every = sorted(dict(zip(*lines, strict=True)).items())
    np.random.default_rng(options.seed).shuffle(every)
    pairs = [(request, answer) for request, answer in every[: options.pool]]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    drawn = {name: getattr(options, name) for name in ("seed", "pool", "count")}
    made_by = {"llm": options.llm.resolve().name, **drawn}
    try:
        scores = kept_scores(options.output, made_by)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    embedder = CachedEmbedder(settings.embedding, options.output.with_suffix(".npz"))
    asked = {
        task: trials(pairs, embedder, options.count, earlier, options.seed)
        for task, earlier in _TASKS.items()
    }
    embedder.save()
    _ask(options, asked, scores)
    return _report(options.forms, scores)


def _ask(
    options: argparse.Namespace,
    asked: dict[str, list[Trial]],
    scores: dict[Key, float],
) -> None:
    keys = [(t, k, f) for t in asked for k in range(options.count) for f in options.forms]
    left = [key for key in keys if key not in scores]
    if not left:
        return
    llm, until = Llm(options.llm, _BATCH, options.threads), time.monotonic() + options.seconds
    with options.output.open("a") as out:
        for start in range(0, len(left), _BATCH):
            some = left[start : start + _BATCH]
            found = [asked[task][k] for task, k, _ in some]
            prompts = [
                FORMS[f](one.turns, one.examples) for one, (*_, f) in zip(found, some, strict=True)
            ]
            for key, one, answer in zip(some, found, llm.answers(prompts), strict=True):
                scores[key] = chrf(command_in(answer), one.reference)
                row = dict(zip(("task", "number", "form"), key, strict=True)) | {
                    "score": scores[key]
                }
                out.write(json.dumps({**row, "answer": answer}) + "\n")
            out.flush()
            print(f"{start + len(some)} of {len(left)}", file=sys.stderr)
            if time.monotonic() > until:
                return


def _report(forms: list[str], scores: dict[Key, float]) -> int:
    results = []
    for task in _TASKS:
        numbers = sorted({k for t, k, _ in scores if t == task})
        whole = [k for k in numbers if all((task, k, form) in scores for form in forms)]
        first = np.array([scores[task, k, forms[0]] for k in whole])
        for form in forms if whole else []:
            got = np.array([scores[task, k, form] for k in whole])
            difference = got - first
            error = float(difference.std(ddof=1) / np.sqrt(len(whole))) if len(whole) > 1 else 0.0
            row = {"task": task, "form": form, "requests": len(whole), "chrf": float(got.mean())}
            row |= {"difference": float(difference.mean()), "standard_error": error}
            results.append(row)
            print(
                f"{task:12} {form:8} {len(whole):4} requests  chrF {got.mean():.3f}  "
                f"less {forms[0]}: {difference.mean():+.3f} ± {error:.3f}"
            )
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
