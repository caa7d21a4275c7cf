#!/usr/bin/env python3
"""Compare forms of the embedder on this CPU: speed, cosine to fp32, recall@10.

All forms take turns in one process, so that the load of other programs falls on each of
them alike; the figures to keep are the ratios. Speed is the CPU time of batches of requests
of the demo workload. Recall: of the 10 nearest of --corpus
texts to each of --queries others by fp32, the share that the form finds, with the same
form for queries and corpus. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from echolm.embedding import TextTokenizer, minilm
from echolm.embedding.runtimes import default_threads
from echolm_lab.experiments.embedder_forms import (
    BATCHES,
    FORMS,
    embed_all,
    load,
    nearest,
    speed,
)
from echolm_lab.tasks import Workload
from echolm_lab.tasks.everyday import request_texts

MIN_COSINE = 0.99
MIN_RECALL = 0.98


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=12, help="turns of the speed measurement")
    parser.add_argument("--corpus", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7, help="of the texts")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends, on each call

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        minilm.build(folder, "fp32")
        forms = load(FORMS, folder, options.threads)
        tokenizer = TextTokenizer.load(folder)
        items = Workload(seed=0).stream(max(64, 4 * max(BATCHES)), options.seed, "live")
        milliseconds = speed(forms, tokenizer, [item.text for item in items], options.rounds)
        texts = request_texts(options.corpus + options.queries, options.seed)
        base = next(iter(forms))
        reference, expected = None, None
        rows: list[dict[str, Any]] = []
        for name, form in forms.items():
            vectors = embed_all(form, tokenizer, texts, name)
            found = nearest(vectors, options.corpus)
            if reference is None or expected is None:
                reference, expected = vectors, found
            cosine = (vectors * reference).sum(axis=1)
            shared = [len(set(a) & set(b)) / 10 for a, b in zip(expected, found, strict=True)]
            ratio = {b: milliseconds[base][b] / milliseconds[name][b] for b in BATCHES}
            rows.append(
                {
                    "form": name,
                    "precision": form.precision,
                    "cpu_ms_per_text": {b: round(milliseconds[name][b], 2) for b in BATCHES},
                    "speedup": {b: round(ratio[b], 2) for b in BATCHES},
                    "cosine_mean": round(float(cosine.mean()), 5),
                    "cosine_min": round(float(cosine.min()), 5),
                    "recall_at_10": round(float(np.mean(shared)), 4),
                }
            )

    print(f"{options.threads} threads, {options.corpus} texts; batches of {BATCHES}")
    print(
        f"{'form':34}{'CPU ms per text':>20}{'speed-up':>18}"
        f"{'cosine mean':>13}{'min':>9}{'recall@10':>11}"
    )
    for row in rows:
        times = " ".join(f"{value:.2f}" for value in row["cpu_ms_per_text"].values())
        ratios = " ".join(f"{value:.2f}x" for value in row["speedup"].values())
        print(
            f"{row['form']:34}{times:>20}{ratios:>18}{row['cosine_mean']:>13}"
            f"{row['cosine_min']:>9}{row['recall_at_10']:>11}"
        )
    good = [
        row for row in rows if row["cosine_min"] >= MIN_COSINE and row["recall_at_10"] >= MIN_RECALL
    ]
    fastest = min(good, key=lambda row: row["cpu_ms_per_text"][max(BATCHES)])["form"]
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": options.threads}
    print(json.dumps({"benchmark": "embedder", "fastest": fastest, "host": host, "forms": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
