"""What the stages share: the folders of the pair, the engine's options, the machine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from echolm_lab.report.environment import gpus, host, package_version, versions

ROOT = Path(__file__).resolve().parents[4]
SCRIPTS = ROOT / "scripts"
ROLES = ("small", "large")
COMMITTED = {
    role: ROOT / "model_repository" / "local" / f"{role}_llm" / "1" / "openvino" for role in ROLES
}
HISTORY = 3_000
"""Past answers in ``scripts/past.jsonl``."""
LONG_PAST = "past.jsonl"
"""More of them, in ``options.work``."""


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's options of the command line."""
    python = {"python": str(options.vllm_python)} if options.vllm_python else {}
    return {**python, **dict(options.set)}


def best_checkpoint(work: Path, role: str) -> Path:
    """The grown checkpoint of an LLM, if there is one, else the pair's."""
    grown: Path = work / "grown" / role
    return grown if is_there(grown) else work / "pair" / role


def is_there(folder: Path) -> bool:
    """Whether a checkpoint is there already, which is printed."""
    if is_file := (folder / "config.json").is_file():
        print(f"{folder} is there already")
    return is_file


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where, with what and by which command was measured."""
    python = getattr(options, "vllm_python", None)
    return {
        "gpus": gpus(),
        "host": host(),
        "versions": {
            **versions(),
            **({"vllm": package_version(python, "vllm")} if python else {}),
        },
        "command": shlex.join(["scripts/bench_gpu.py", *sys.argv[1:]]),
    }
