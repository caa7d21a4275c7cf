"""The pair as checkpoints: trained or exported, its past answers, grown to real sizes."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys

from echolm.conversation import Turn
from echolm.engines import create_engine
from echolm.llm.chat_template import load_chat_template
from echolm.primitives import Sampling

from echolm_lab.experiments.engine_load import answer_all
from echolm_lab.experiments.gpu.common import (
    COMMITTED,
    LONG_PAST,
    ROLES,
    SCRIPTS,
    engine_options,
    is_there,
)
from echolm_lab.models.grow import grow as grow_checkpoint
from echolm_lab.policies.base import MAX_TOKENS
from echolm_lab.tasks import PastInteraction, grade
from echolm_lab.tasks.past import past_items, write_past

TRAINING = {
    "small": "--minutes 5 --rate 1.2e-3 --requests 8 --workers 14 --shape "
    '\'{"layers":8,"hidden":640,"heads":10,"kv_heads":2,"feed_forward":1792}\'',
    "large": "--minutes 3.3 --rate 3e-4 --warmup 80 --requests 8 --workers 14 --shape "
    '\'{"layers":20,"hidden":2048,"heads":16,"kv_heads":8,"head_dim":128,"feed_forward":5632,'
    '"batch_tokens":16384}\'',
}
"""Arguments of train_pair.py: 38 M and 0.9 B parameters."""


def train(options: argparse.Namespace) -> None:
    """Train one LLM with scripts/train_pair.py."""
    output = options.work / "pair" / options.role
    if is_there(output):
        return
    command = [str(options.python), str(SCRIPTS / "train_pair.py"), "model", options.role]
    command += ["--tokenizer", str(COMMITTED["large"] / "tokenizer.json"), "--output", str(output)]
    arguments = options.arguments if options.arguments is not None else TRAINING[options.role]
    subprocess.run(command + shlex.split(arguments), check=True)


def export(options: argparse.Namespace) -> None:
    """Write the shipped pair as checkpoints."""
    for role in ROLES:
        output = options.work / "pair" / role
        if not is_there(output):
            command = [sys.executable, str(SCRIPTS / "export_hf.py")]
            command += ["--model", str(COMMITTED[role]), "--output", str(output)]
            subprocess.run(command, check=True)


def past(options: argparse.Namespace) -> None:
    """The answers of the pair's large LLM to more past requests than were recorded."""
    file = options.work / LONG_PAST
    if file.is_file():
        print(f"{file} is there already")
        return
    items = past_items(options.count)
    render = load_chat_template("echolm", None).render
    engine = create_engine("vllm", options.work / "pair" / "large", engine_options(options))
    try:
        prompts = [render([Turn("user", item.text)]) for item in items]
        answers = answer_all(engine, prompts, Sampling(max_tokens=MAX_TOKENS), 512)
    finally:
        engine.close()
    interactions = [
        PastInteraction(item, answer) for item, answer in zip(items, answers, strict=True)
    ]
    write_past(file, interactions)
    right = sum(grade(e.item, e.response) for e in interactions)
    print(
        f"{len(interactions)} interactions, mean score {right / len(interactions):.4f}, in {file}"
    )


def grow(options: argparse.Namespace) -> None:
    """Grow both checkpoints, each to its shape."""
    for role in ROLES:
        output = options.work / "grown" / role
        if is_there(output):
            continue
        partial = output.with_name(f"{role}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        source, shape = options.work / "pair" / role, getattr(options, f"{role}_shape")
        grown = grow_checkpoint(source, partial, shape, seed=0, file_bytes=4 << 30)
        partial.rename(output)
        print(json.dumps({**grown, "output": str(output)}))
