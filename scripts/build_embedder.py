#!/usr/bin/env python3
"""Write the embedder's files: model.onnx, tokenizer.json, embedder.json."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from echolm.embedding import minilm
from echolm.errors import EchoError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the files"
    )
    parser.add_argument(
        "--form",
        choices=("fp32", "fast", "cuda"),
        default="fast",
        help="fast (default): OpenVINO with BF16 or INT8 products, as the CPU has them; "
        "fp32: ONNX Runtime, equal to the reference within 1e-5; cuda: the same on an NVIDIA GPU",
    )
    options = parser.parse_args()
    start = time.monotonic()
    try:
        written = minilm.build(options.output, options.form)
    except EchoError as error:
        print(f"build_embedder: {error}", file=sys.stderr)
        return 1
    did = f"written in {time.monotonic() - start:.1f} s" if written else "up to date"
    print(f"{minilm.NAME} ({options.form}) in {options.output}: {did}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
