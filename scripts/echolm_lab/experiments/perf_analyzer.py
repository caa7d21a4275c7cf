"""NVIDIA's perf_analyzer: gets the binary, runs it, reads what it has measured.

The binary comes from the tritonclient wheel (2.50.0 is the newest that runs on glibc 2.35), is
downloaded once into build/perf_analyzer and gets the two shared libraries it lacks from the
nvidia-pytriton wheel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from echolm.llm.triton_client import ADMIN_HEADER
from echolm.settings.loading import load_settings

_DIRECTORY = Path(__file__).resolve().parents[3] / "build" / "perf_analyzer"
VERSION = "2.50.0"
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def install(directory: Path) -> Path:
    """The binary, downloaded if it is not there yet."""
    binary = directory / f"perf_analyzer-{VERSION}"
    if not binary.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as download:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                + ["--disable-pip-version-check", "--only-binary=:all:"]
                + [
                    "--platform=manylinux1_x86_64",
                    f"--dest={download}",
                    f"tritonclient=={VERSION}",
                ],
                check=True,
            )
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                member = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
                partial = Path(download) / "perf_analyzer"
                partial.write_bytes(archive.read(member))
            partial.chmod(0o755)
            partial.rename(binary)
    spec = util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        sys.exit("perf_analyzer: nvidia-pytriton is not installed; run `make install`")
    libraries = Path(spec.origin).parent.parent / "nvidia_pytriton.libs"
    for name, pattern in _LIBRARIES.items():
        link = directory / name
        if not link.exists():
            candidates = sorted(libraries.glob(pattern))
            if not candidates:
                sys.exit(f"perf_analyzer: expected {pattern} in {libraries}, found none")
            link.unlink(missing_ok=True)
            link.symlink_to(candidates[0])
    return binary


def run(arguments: list[str], directory: Path = _DIRECTORY) -> subprocess.CompletedProcess[str]:
    """Run perf_analyzer; its output is passed on and returned."""
    binary = install(directory)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(directory)}
    done = subprocess.run(
        [str(binary), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    return done


def write_inputs(path: Path, texts: list[str], **constant: int | float | str | bool) -> Path:
    """An --input-data file: one entry per text, the other inputs the same in each."""
    shared = {name: [value] for name, value in constant.items()}
    entries = [{"text_input": [text], **shared} for text in texts]
    path.write_text(json.dumps({"data": entries}), encoding="utf-8")
    return path


def read_export(file: Path) -> Any:
    """The file's value. perf_analyzer writes tensors into it as they are, also as strings."""
    return json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)


def times_of(export: Mapping[str, Any]) -> dict[str, float]:
    """Requests/s and latency of what was answered, from the times of each request, in ns.

    What perf_analyzer prints itself counts whole seconds: in a short measurement a tenth too few.
    """
    [experiment] = export["experiments"]
    answered = [request for request in experiment["requests"] if request["response_timestamps"]]
    begun = np.array([request["timestamp"] for request in answered])
    ended = np.array([request["response_timestamps"][-1] for request in answered])
    p50, p90, p99 = np.quantile((ended - begun) / 1e6, (0.5, 0.9, 0.99)).tolist()
    seconds = (ended.max() - begun.min()) / 1e9
    return {
        "requests_per_s": float(len(answered) / seconds),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
    }


def admin_headers(file: Path | None) -> list[str]:
    """Options with the admin key, if there is one, for both protocols.

    Args:
        file: None takes that of the configuration's data directory.
    """
    file = file or load_settings().data_dir / "admin.key"
    if not file.is_file():
        return []
    key = file.read_text(encoding="utf-8").strip()
    names = (ADMIN_HEADER, f"triton-grpc-protocol-{ADMIN_HEADER}")
    return [option for name in names for option in ("-H", f"{name}:{key}")]
