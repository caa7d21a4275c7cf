"""The path without LLMs, the report, and all stages one after the other."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from echolm.errors import UnavailableError

from echolm_lab.experiments.comparison import Kept
from echolm_lab.experiments.gpu.common import ROLES, SCRIPTS, machine
from echolm_lab.experiments.gpu.evaluation import configuration, evaluate
from echolm_lab.experiments.gpu.pair import export, grow
from echolm_lab.experiments.gpu.shapes import settings_left, shape_kept, shapes
from echolm_lab.models.grow import SHAPES
from echolm_lab.report import gpu_report


def path(options: argparse.Namespace) -> None:
    """The path without generation, with the embedder of the profile."""
    file = options.work / "path.json"
    if file.is_file():
        print(f"{file} is there already")
        return
    command = [sys.executable, str(SCRIPTS / "bench_path.py")]
    command += [f"--examples={options.examples}", f"--concurrency={options.path_concurrency}"]
    command += [f"--requests={options.path_requests}", f"--rate={options.rate}"]
    config = configuration(options)
    if config is not None:
        command.append(f"--config={config}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode:
        raise UnavailableError(f"bench_path.py ended with {done.returncode}")
    measured = json.loads(done.stdout.splitlines()[-1])
    Kept(file).add("machine", machine(options))
    Kept(file).add("path", measured)


def report(options: argparse.Namespace) -> None:
    """Markdown and plots of what there is."""
    print(gpu_report.write(options.work))


def all_stages(options: argparse.Namespace) -> int:
    """Every stage in order, each only if there is still time for it; 3: to be called again."""
    ends = time.monotonic() + 60 * options.minutes
    stages: list[tuple[Callable[[argparse.Namespace], None], float, argparse.Namespace]] = [
        (export, 0.5, options),
        (grow, 2, options),
        (evaluate, 8, options),
        (path, 4, options),
    ]
    for name in options.real:
        values = {**vars(options), "shape": SHAPES[name], "name": name}
        values["concurrency"] = options.shape_concurrency
        stages.append((shapes, 3 + 2 * options.repeats, argparse.Namespace(**values)))
    for stage, minutes, chosen in stages:
        title = f"shapes {chosen.name}" if stage is shapes else stage.__name__
        if not _finished(stage, chosen) and time.monotonic() + 60 * minutes > ends:
            print(f"no time left for {title} (about {minutes:g} minutes): call again to go on")
            return 3
        print(f"--- {title}", flush=True)
        stage(chosen)
    report(options)
    return 0


def _finished(stage: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> bool:
    work: Path = options.work
    if stage is shapes:
        return not settings_left(options, shape_kept(options))
    if stage is evaluate:
        return "report" in Kept(work / "evaluate.json").parts
    if stage is path:
        return (work / "path.json").is_file()
    folder = work / ("pair" if stage is export else "grown")
    return all((folder / role / "config.json").is_file() for role in ROLES)
