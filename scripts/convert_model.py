#!/usr/bin/env python3
"""Convert a Hugging Face causal LLM checkpoint to an OpenVINO GenAI folder.

Build-time requirements (serving needs none of them), best in an environment
of their own:

    pip install torch optimum-intel openvino openvino-tokenizers nncf

A CPU build of torch is enough. Tried with torch 2.13.0 (CPU), transformers
5.5.4, optimum-intel 2.2.0, openvino 2026.4.1 and nncf 3.4.0.

The output folder holds all that ``openvino_genai`` and the ``openvino`` engine
of the LLM model need: ``openvino_model.xml/.bin``, the OpenVINO tokenizer and
detokenizer, ``config.json``, ``generation_config.json`` (with the end token),
``tokenizer.json``, and the checkpoint's chat template, so that the folder does
as ``llms.tokenizer``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

WEIGHT_FORMATS = ("fp32", "fp16", "int8", "int4")
COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
#: A file that optimum writes and nothing at serving time reads.
DROPPED = "openvino_config.json"


def convert(checkpoint: Path, output: Path, weight_format: str, group_size: int) -> None:
    """Export ``checkpoint`` to ``output`` with weights stored in ``weight_format``."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        model_name_or_path=str(checkpoint),
        output=output,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp32" if weight_format == "fp32" else "fp16"),
        convert_tokenizer=True,
    )
    if weight_format in ("int8", "int4"):
        compress(output / "openvino_model.xml", weight_format, group_size)
    for name in COPIED:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, output / name)
    (output / DROPPED).unlink(missing_ok=True)


def compress(model_file: Path, weight_format: str, group_size: int) -> None:
    """Replace the weights of an exported model by int8 or int4 ones, in place."""
    import nncf
    import openvino as ov

    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is overwritten below
    model = core.read_model(model_file)
    if weight_format == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        model = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=group_size, ratio=1.0
        )
    ov.save_model(model, model_file, compress_to_fp16=False)


def check(output: Path) -> dict[str, object]:
    """Names what is missing from ``output``; returns a summary of what is there."""
    required = (
        "openvino_model.xml",
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_tokenizer.bin",
        "openvino_detokenizer.xml",
        "openvino_detokenizer.bin",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    )
    missing = [name for name in required if not (output / name).exists()]
    if missing:
        raise FileNotFoundError(f"conversion did not write {', '.join(missing)} in {output}")
    generation = json.loads((output / "generation_config.json").read_text())
    if generation.get("eos_token_id") is None:
        raise ValueError(
            f"{output / 'generation_config.json'} has no eos_token_id: answers would never end; "
            "set it in the checkpoint and convert again"
        )
    return {
        "output": str(output),
        "weights_mb": round((output / "openvino_model.bin").stat().st_size / 1e6, 2),
        "eos_token_id": generation["eos_token_id"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face checkpoint folder")
    parser.add_argument("output", type=Path, help="folder to write; must not hold a model yet")
    parser.add_argument("--weight-format", choices=WEIGHT_FORMATS, default="int8")
    parser.add_argument("--group-size", type=int, default=64, help="int4 only (default 64)")
    parser.add_argument("--force", action="store_true", help="overwrite a model in OUTPUT")
    args = parser.parse_args(argv)
    if not (args.checkpoint / "config.json").exists():
        parser.error(f"{args.checkpoint} is no Hugging Face checkpoint: it has no config.json")
    if (args.output / "openvino_model.xml").exists() and not args.force:
        parser.error(f"{args.output} already holds a model; give --force to overwrite it")
    started = time.monotonic()
    print(f"converting {args.checkpoint} to {args.weight_format} ...", file=sys.stderr, flush=True)
    try:
        convert(args.checkpoint, args.output, args.weight_format, args.group_size)
        summary = check(args.output)
    except ImportError as error:
        print(f"{error}; see --help for what to install", file=sys.stderr)
        return 2
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    summary["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
