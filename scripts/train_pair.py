#!/usr/bin/env python3
"""Train the demo pair's LLMs from scratch on the generated workload.

    train_pair.py tokenizer --output build/pair/tokenizer.json
    train_pair.py model small --tokenizer build/pair/tokenizer.json --output build/pair/small
    train_pair.py model large --tokenizer build/pair/tokenizer.json --output build/pair/large

Needs torch, transformers, tokenizers and safetensors; one GPU of the H200
class for the defaults (about ten minutes each). ``--tiny`` runs all of it in
a minute on a CPU, to see that it works. The output is a Hugging Face
checkpoint (``LlamaForCausalLM``); `echolm build --profile local` makes an
OpenVINO model of it. Training ends after ``--minutes``; the learning rate follows the
clock. ``--init`` continues from a checkpoint's weights. The committed small LLM
was trained in two parts: 6 minutes on rows of up to 1,024 tokens, then 2.9
minutes with ``--init``, ``--rate 1.2e-3`` and today's row lengths (echolm_lab/models/llama.py); the
committed large one with ``--minutes 5.2``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from echolm_lab.models.tokenizer import train_tokenizer
from tokenizers import Tokenizer


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bpe = commands.add_parser("tokenizer", help="train the shared tokenizer")
    bpe.add_argument("--output", type=Path, required=True)
    bpe.add_argument("--vocabulary", type=int, default=2560)
    bpe.add_argument("--rows", type=int, default=6000)
    model = commands.add_parser("model", help="train and evaluate one LLM")
    model.add_argument("which", choices=("large", "small"))
    model.add_argument("--tokenizer", type=Path, required=True)
    model.add_argument("--output", type=Path, required=True)
    model.add_argument("--minutes", type=float, default=6.0)
    model.add_argument("--steps", type=int, default=0, help="end earlier, after this many steps")
    model.add_argument(
        "--rate", type=float, default=0.0, help="peak learning rate; default: the recipe's"
    )
    model.add_argument("--weight-decay", type=float, default=0.05)
    model.add_argument("--warmup", type=int, default=200, help="steps")
    model.add_argument("--workers", type=int, default=7, help="processes that generate data")
    model.add_argument("--seed", type=int, default=0)
    model.add_argument("--init", type=Path, help="checkpoint to continue from")
    model.add_argument(
        "--requests", type=int, default=1000, help="requests per evaluated condition"
    )
    model.add_argument("--tiny", action="store_true", help="a toy model, to test the code")
    model.add_argument("--shape", help="JSON of recipe fields to change, such as '{\"layers\": 5}'")
    model.add_argument("--no-compile", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.command == "tokenizer":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(args.vocabulary, args.rows)
        tokenizer.save(str(args.output))
        print(json.dumps({"tokenizer": str(args.output), "entries": tokenizer.get_vocab_size()}))
        return 0
    # Here, so that --help, wrong arguments and the tokenizer need no torch.
    import torch
    from echolm_lab.models.evaluation import CONDITIONS, evaluate
    from echolm_lab.models.llama import RECIPES, TINY, hf_model
    from echolm_lab.models.training import save, train

    recipe = (TINY if args.tiny else RECIPES)[args.which]
    recipe = replace(recipe, **json.loads(args.shape or "{}"))
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    model = train(args.which, recipe, tokenizer, args)
    args.output.mkdir(parents=True, exist_ok=True)
    tested = hf_model(model, recipe, tokenizer).to(next(model.parameters()).device)
    if torch.cuda.is_available():
        tested = tested.half()
    save(model, recipe, tokenizer, args.output)
    conditions = list(CONDITIONS) if args.which == "small" else ["alone"]
    report = evaluate(args.which, tested, tokenizer, args.requests, conditions)
    (args.output / "evaluation.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({"which": args.which, "alone": report["alone"]["all"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
