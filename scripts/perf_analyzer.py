#!/usr/bin/env python3
"""Run NVIDIA's perf_analyzer against a running EchoLM.

The binary comes from the tritonclient wheel (2.50.0 is the newest that runs on glibc 2.35),
is downloaded once into build/perf_analyzer and gets the two shared libraries it lacks from
the nvidia-pytriton wheel. Without arguments it load-tests `echolm` over gRPC and HTTP and
`echolm_stream` over gRPC, with requests of the demo workload; arguments after `--` go to
perf_analyzer instead:

    scripts/perf_analyzer.py
    scripts/perf_analyzer.py -- -m echolm -i grpc --concurrency-range 1:16:4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "2.50.0"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


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
    for name, pattern in LIBRARIES.items():
        link = directory / name
        if not link.exists():
            found = sorted(libraries.glob(pattern))
            if not found:
                sys.exit(f"perf_analyzer: expected {pattern} in {libraries}, found none")
            link.unlink(missing_ok=True)
            link.symlink_to(found[0])
    return binary


def run(arguments: list[str], directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run perf_analyzer; its output is passed on and returned."""
    directory = directory or ROOT / "build" / "perf_analyzer"
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


def default_runs(options: argparse.Namespace, work: Path) -> list[list[str]]:
    """perf_analyzer's arguments for each model and protocol."""
    from echolm_lab.tasks import Workload

    texts = [item.text for item in Workload(seed=0).stream(200, seed=options.seed, phase="live")]
    unary = write_inputs(work / "unary.json", texts, max_tokens=options.max_tokens)
    stream = write_inputs(work / "stream.json", texts, max_tokens=options.max_tokens, stream=True)
    # A fixed number: with measurement windows it fails where throughput varies, which says
    # something of the machine and nothing of the requests.
    common = [f"--request-count={options.requests}"]
    concurrency = f"--concurrency-range={options.concurrency}"
    return [
        ["-m", "echolm", "-i", "grpc", "-u", options.grpc_url, concurrency, "--async"]
        + [f"--input-data={unary}", *common],
        ["-m", "echolm", "-i", "http", "-u", options.http_url, concurrency, "--async"]
        + [f"--input-data={unary}", *common],
        ["-m", "echolm_stream", "-i", "grpc", "-u", options.grpc_url, concurrency]
        + ["--async", "--streaming", f"--input-data={stream}", *common],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grpc-url", default="localhost:8001")
    parser.add_argument("--http-url", default="localhost:8000")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=100, help="in each run")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="given to perf_analyzer as they are")
    options = parser.parse_args()
    if options.arguments:
        return run(options.arguments).returncode
    results = []
    with tempfile.TemporaryDirectory() as work:
        for arguments in default_runs(options, Path(work)):
            done = run(arguments)
            failed = done.returncode != 0 or "Failed" in done.stdout
            results.append({"model": arguments[1], "protocol": arguments[3], "clean": not failed})
    print(json.dumps({"perf_analyzer": VERSION, "runs": results}))
    return 0 if all(result["clean"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
