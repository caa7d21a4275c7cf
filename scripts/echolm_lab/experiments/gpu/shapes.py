"""One engine with random weights of a real size under the prompts of the recorded decisions."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from echolm.engines import create_engine
from echolm.primitives import Sampling

from echolm_lab.experiments.comparison import Kept
from echolm_lab.experiments.engine_load import measure_engine
from echolm_lab.experiments.gpu.common import COMMITTED, HISTORY, engine_options, machine
from echolm_lab.experiments.gpu.decisions import DECISIONS, ORDERS, Decisions, recorded_items
from echolm_lab.models.checkpoints import write_checkpoint
from echolm_lab.tasks.past import recorded_past

MEASURED = 600
"""The last of the recorded requests; those before them warm the prefix cache."""


def shapes(options: argparse.Namespace) -> None:
    """One engine with random weights under the recorded prompts."""
    file, kept = shape_file(options), shape_kept(options)
    missing = settings_left(options, kept)
    if not missing:
        print(f"all of {file.stem} is there already")
        return
    if file.is_file() and "machine" not in kept.parts:
        print(f"{file} is of other settings or decisions: measured anew")
    decisions = Decisions(DECISIONS, recorded_items(), recorded_past(HISTORY))
    folder = file.parent / file.stem
    write_checkpoint(folder, options.shape.config(), COMMITTED["large"], options.vocabulary)
    engine_settings = {"load_format": "dummy", **engine_options(options)}
    started = time.monotonic()
    engine = create_engine("vllm", folder, engine_settings)
    try:
        print(f"loaded after {time.monotonic() - started:.0f} s", flush=True)
        sampling = Sampling(max_tokens=options.max_tokens)

        def run(key: str) -> dict[str, Any]:
            count, order, concurrency = missing[key]
            prompts = list(decisions.prompts(count, order, salt=key))
            warming = prompts[-MEASURED - options.warm_up : -MEASURED]
            # They fill the cache, as a server's is: one token each will do.
            measure_engine(engine, warming, Sampling(max_tokens=1), 128, math.inf)
            figures = measure_engine(
                engine, prompts[-MEASURED:], sampling, concurrency, options.seconds
            )
            return {
                "examples": count,
                "order": order,
                "warm_up": len(warming),
                "concurrency": concurrency,
                **asdict(figures),
            }

        # What is compiled at its first use is not the first setting's burden.
        prompts = itertools.islice(decisions.prompts(3, "similarity", salt="warm"), 256)
        measure_engine(engine, prompts, sampling, max(options.concurrency), math.inf)
        kept.add("machine", machine(options))
        for key in missing:
            kept.add(key, run(key))
            print(json.dumps(kept.parts[key]), flush=True)
    finally:
        engine.close()


def shape_file(options: argparse.Namespace) -> Path:
    """Of the figures; the checkpoint is in the folder of that name beside it."""
    name = options.name or "-".join(str(value) for value in asdict(options.shape).values())
    file: Path = options.work / "shapes" / f"{name}.json"
    return file


def shape_kept(options: argparse.Namespace) -> Kept:
    """What is measured of the shape; figures that are not comparable with those asked for go."""
    asked = {
        "shape": {**asdict(options.shape), "vocabulary": options.vocabulary, **dict(options.set)},
        **{name: getattr(options, name) for name in ("seconds", "max_tokens", "warm_up")},
        "decisions": hashlib.sha256(DECISIONS.read_bytes()).hexdigest(),
    }
    kept = Kept(shape_file(options))
    if kept.parts.get("asked") != asked:
        kept.parts = {"asked": asked}
    return kept


def settings_left(options: argparse.Namespace, kept: Kept) -> dict[str, tuple[int, str, int]]:
    """Examples, order and concurrency of what is not measured yet, by key.

    One repeat comes after the other, so that what changes on the machine meets all settings.
    """
    return {
        key: (count, order, concurrency)
        for number in range(1, options.repeats + 1)
        for concurrency in options.concurrency
        for count in options.counts
        for order in (ORDERS if count else ("none",))
        if (key := f"{count} {order} {concurrency} {number}") not in kept.parts
    }
