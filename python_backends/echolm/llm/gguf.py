"""Reads the header of a GGUF file: what LLM it holds, how it is quantized, and its tokenizer.

Only the header is read, within bounds, and nothing of the file is run. (The package ``gguf`` takes
seconds for it, since it makes an array of every token.) Source of the format and of the numbers:
``docs/gguf.md`` of ggml.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from echolm.errors import ConfigurationError

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_KEYS, _MOST_TENSORS, _MOST_ELEMENTS = 10_000, 100_000, 4_000_000
_MOST_BYTES = 1 << 24
"""Longest text in the header."""
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _ARRAY = 8, 9
QUANTIZATIONS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""Names of the types of tensors that can be dequantized."""


@dataclass(frozen=True)
class GGUFFile:
    """What a file's header says.

    Attributes:
        values: its metadata by their keys.
        tensor_types: numbers of tensors of each type; a type without a name is a number.
        num_parameters: of all tensors.
    """

    path: Path
    values: Mapping[str, Any]
    tensor_types: Mapping[str, int]
    num_parameters: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def of_model(self, key: str, default: Any = None) -> Any:
        """A value of the architecture, such as ``context_length``."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def of_tokenizer(self, key: str, default: Any = None) -> Any:
        """A value of the tokenizer, such as ``tokens``."""
        return self.values.get(f"tokenizer.ggml.{key}", default)

    @property
    def chat_template(self) -> str:
        """Empty if there is none."""
        return str(self.values.get("tokenizer.chat_template", ""))


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's header; ConfigurationError if it is no GGUF file, or is cut short."""
    try:
        with open(path, "rb") as stream:
            return _Reader(stream, path).read()
    except OSError as error:
        got = error.strerror
        raise ConfigurationError(f"{path}: expected a readable file, got: {got}") from error
    except (ValueError, struct.error, OverflowError) as error:
        raise ConfigurationError(
            f"{path}: expected a GGUF file of version {' or '.join(map(str, _VERSIONS))}, got: "
            f"{error}; fetch it again"
        ) from error


class _Reader:
    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def read(self) -> GGUFFile:
        if (magic := self._stream.read(4)) != _MAGIC:
            raise ValueError(f"another kind of file (it begins with {magic!r})")
        if (version := self._number(4)) not in _VERSIONS:
            raise ValueError(f"version {version}")
        tensors, keys = self._count(10, _MOST_TENSORS), self._count(10, _MOST_KEYS)
        values = {self._text(): self._value(self._number(4)) for _ in range(keys)}
        types: Counter[str] = Counter()
        parameters = 0
        for _ in range(tensors):
            self._text()
            size = 1
            for _ in range(self._count(4, 8)):
                size *= self._number(10)
            kind = self._number(4)
            types[QUANTIZATIONS.get(kind, str(kind))] += 1
            parameters += size
            self._number(10)
        # The smallest types take a quarter of a byte a number.
        if self._path.stat().st_size < parameters // 8:
            raise ValueError("a file that is shorter than its tensors")
        return GGUFFile(self._path, values, dict(types), parameters)

    def _number(self, kind: int) -> Any:
        code = _NUMBERS.get(kind, "")
        if not code:
            raise ValueError(f"a value of the unknown type {kind}")
        size = struct.calcsize(code)
        data = self._stream.read(size)
        if len(data) < size:
            raise ValueError("a file that ends within its header")
        return struct.unpack(code, data)[0]

    def _count(self, kind: int, most: int) -> int:
        if (count := int(self._number(kind))) > most:
            raise ValueError(f"{count} elements, more than {most}")
        return count

    def _text(self) -> str:
        size = self._count(10, _MOST_BYTES)
        data = self._stream.read(size)
        if len(data) < size:
            raise ValueError("a file that ends within its header")
        return data.decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            return self._number(kind)
        kind, count = self._number(4), self._count(10, _MOST_ELEMENTS)
        if kind == _TEXT:
            return [self._text() for _ in range(count)]
        return [self._number(kind) for _ in range(count)]
