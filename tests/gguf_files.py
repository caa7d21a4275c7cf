"""Writes small GGUF files: a header as a real one has it, and tensors of zeros."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

TEXT, ARRAY, UINT32, INT32, BOOL, FLOAT32 = 8, 9, 4, 5, 7, 6
TYPES = {"F32": 0, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "' s", "Ġ Ġ")
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def values(**changes: Any) -> dict[str, Any]:
    """The metadata of a chat LLM with byte-level BPE; a change to None leaves a key out.

    ``__`` in a name stands for a point.
    """
    letters = sorted(ByteLevel.alphabet())
    tokens = [*CONTROL, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    given: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 4_096,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in given.items() if value is not None}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[tuple[int, str | int]] = ((4_096, "Q8_0"), (64, "F32")),
) -> Path:
    """A file with this metadata and tensors of so many numbers, each with its type."""
    given = values() if metadata is None else metadata
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(given))
    for key, value in given.items():
        out += _text(key) + _value(value)
    size = 0
    for number, (count, kind) in enumerate(tensors):
        code = TYPES.get(kind, kind) if isinstance(kind, str) else kind
        out += _text(f"t{number}") + struct.pack("<IQIQ", 1, count, code, size)
        size += 4 * count
    with open(path, "wb") as stream:
        stream.write(out)
        stream.truncate(len(out) + size)  # a sparse file, as large as it is said to be
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = {str: TEXT, float: FLOAT32}.get(type(value[0]), INT32)
        code = "<f" if kind == FLOAT32 else "<i"
        items = b"".join(_text(v) if kind == TEXT else struct.pack(code, v) for v in value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<II", UINT32, value)
