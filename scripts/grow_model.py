#!/usr/bin/env python3
"""Grow a trained Llama checkpoint to a larger shape that computes the same function.

    grow_model.py build/hf/small_llm build/grown/small --shape 3b
    grow_model.py build/hf/large_llm build/grown/large --shape 14b,kv_heads=20

A small decoder that knows the demo workload then costs what a model of the target's shape costs,
and its answers stay what they were, so that quality and real-size speed can be measured together
(how: echolm_lab/models/grow.py). Needs numpy and safetensors; holds one output file in memory.
The vocabulary is not grown.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echolm.errors import ConfigurationError
from echolm_lab.models.grow import SHAPES, grow, parse_shape


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a Hugging Face Llama checkpoint")
    parser.add_argument("output", type=Path, help="folder for the grown one")
    parser.add_argument(
        "--shape",
        type=parse_shape,
        required=True,
        help=f"one of {', '.join(SHAPES)}, with changes such as 14b,kv_heads=20",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the filler")
    parser.add_argument("--file-gib", type=float, default=4.0, help="size of the output's files")
    args = parser.parse_args(argv)
    try:
        grown = grow(args.source, args.output, args.shape, args.seed, int(args.file_gib * 2**30))
    except ConfigurationError as error:
        print(f"grow_model: {error}", file=sys.stderr)
        return 2
    print(json.dumps(grown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
