#!/usr/bin/env python3
"""Compare embedding models: is the answer of the nearest request right, and what does a text cost?

Of each of --queries requests, drawn at random from a file of requests with their answers, the
nearest of all others is looked for, and its answer is scored by the request's own: what a copy of
the nearest answer would be worth. Examples that are chosen so may be worth more to an LLM, which
has several of them and its own knowledge. The models run one after another in one process; the cost
is CPU time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.errors import EchoError
from echolm.settings import EmbeddingSettings
from echolm_lab.tasks.requests import metric_of, read_requests

_BATCH = 16


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("requests", type=Path, help="JSON lines with request and reference")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="a folder as for embedding.model_dir; several times, the first is compared with",
    )
    parser.add_argument("--metric", default="exact", help="exact, chrf, or file.py:function")
    parser.add_argument("--corpus", type=int, default=5_000, help="requests that are searched")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    try:
        asked = read_requests(options.requests, metric_of(options.metric))
        embedders = [TextEmbedder(EmbeddingSettings(model_dir=model)) for model in options.model]
    except EchoError as error:
        print(f"bench_embedding_models: {error}", file=sys.stderr)
        return 1
    random.Random(options.seed).shuffle(asked)
    queries, corpus = asked[: options.queries], asked[options.queries :][: options.corpus]
    texts = [item.text for item in (*queries, *corpus)]
    rows: list[dict[str, Any]] = []
    scores: list[list[float]] = []
    for embed in embedders:
        embed(texts[:_BATCH])  # the first call is slower
        started = time.process_time()
        parts = [embed(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        seconds = time.process_time() - started
        vectors = np.concatenate(parts)
        found = (vectors[: len(queries)] @ vectors[len(queries) :].T).argmax(axis=1)
        scores.append([q.score(corpus[k].reference) for q, k in zip(queries, found, strict=True)])
        difference = np.array(scores[-1]) - np.array(scores[0])
        rows.append(
            {
                "model": embed.name,
                "dimension": embed.dimension,
                "score": round(float(np.mean(scores[-1])), 4),
                "more_than_first": round(float(difference.mean()), 4),
                "standard_error": round(float(difference.std() / len(queries) ** 0.5), 4),
                "cpu_ms_per_text": round(1e3 * seconds / len(texts), 2),
            }
        )
    print(f"{'model':28}{'score':>8}{'more':>10}{'± s.e.':>9}{'CPU ms per text':>18}")
    for row in rows:
        print(
            f"{row['model'][:27]:28}{row['score']:8.3f}{row['more_than_first']:+10.3f}"
            f"{row['standard_error']:9.3f}{row['cpu_ms_per_text']:18.2f}"
        )
    counts = {"corpus": len(corpus), "queries": len(queries), "metric": options.metric}
    machine = platform.machine()
    print(
        json.dumps({"benchmark": "embedding_models", **counts, "machine": machine, "models": rows})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
