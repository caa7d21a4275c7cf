"""Makes an OpenVINO folder of a Hugging Face checkpoint or of a GGUF file.

It runs by itself in an environment with torch, transformers, optimum-intel and nncf
(:mod:`echolm.serving.conversion`), which need not have EchoLM: nothing of it is imported here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
"""Files of the checkpoint that the folder has as well."""
DROPPED = "openvino_config.json"
"""A file that optimum writes and nothing at serving time reads."""
GROUP_SIZE = 64
"""Weights that share a scale with INT4."""


def convert(checkpoint: Path, output: Path, weights: str) -> None:
    """Export a checkpoint with its weights in this format."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        model_name_or_path=str(checkpoint),
        output=output,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp16"),
        convert_tokenizer=True,
    )
    compress(output / "openvino_model.xml", weights)
    for name in COPIED:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, output / name)
    (output / DROPPED).unlink(missing_ok=True)


def compress(model_file: Path, weights: str) -> None:
    """Replace the weights of an exported model by INT8 or INT4 ones, in place."""
    import nncf
    import openvino as ov

    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is overwritten below
    model = core.read_model(model_file)
    if weights == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        mode = nncf.CompressWeightsMode.INT4_ASYM
        model = nncf.compress_weights(model, mode=mode, group_size=GROUP_SIZE, ratio=1.0)
    ov.save_model(model, model_file, compress_to_fp16=False)


def dequantize(file: Path, checkpoint: Path) -> None:
    """Write a GGUF file as a Hugging Face checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a checkpoint, or a GGUF file")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--weights", choices=("int8", "int4"), default="int8")
    args = parser.parse_args()
    if args.source.is_dir():
        convert(args.source, args.output, args.weights)
        return 0
    # Beside the output, since /tmp may be too small for it.
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".checkpoint-") as folder:
        dequantize(args.source, Path(folder))
        convert(Path(folder), args.output, args.weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
