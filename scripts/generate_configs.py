#!/usr/bin/env python3
"""Write the tensors of echolm/contracts.py into the config.pbtxt files of the model repository."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python_backends"))

from echolm import contracts
from echolm.contracts import ModelContract, Tensor

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
BEGIN = "# Generated from echolm/contracts.py by scripts/generate_configs.py:\n"
END = "# End of the generated part.\n"
_ENGINE = re.compile(r'key: "engine"\s+value:? *{\s*string_value: "(\w+)"')
_CONTRACTS = {contract.name: contract for contract in (*contracts.CORE_MODELS, contracts.EMBEDDER)}


def contract_of(file: Path) -> ModelContract:
    """The contract of a model of the repository; what is no model of ours is an LLM."""
    model = file.parent.name
    engine = _ENGINE.search(file.read_text(encoding="utf-8"))
    return _CONTRACTS.get(model) or contracts.llm(model, engine[1] if engine else "")


def _entry(tensor: Tensor) -> str:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = ", ".join(map(str, tensor.dims))
    flags = " optional: true" * tensor.optional + " allow_ragged_batch: true" * tensor.ragged
    return f'  {{ name: "{tensor.name}" data_type: TYPE_{datatype} dims: [ {dims} ]{flags} }}'


def generated(contract: ModelContract) -> str:
    """The part of a ``config.pbtxt`` that a contract says."""
    policy = "model_transaction_policy { decoupled: true }\n" if contract.decoupled else ""
    tables = "".join(
        f"{kind} [\n" + ",\n".join(map(_entry, tensors)) + "\n]\n"
        for kind, tensors in (("input", contract.inputs), ("output", contract.outputs))
    )
    return f"max_batch_size: {contract.max_batch_size}\n{policy}{tables}"


def renewed(text: str, contract: ModelContract) -> str | None:
    """The file with that part as it should be; None for a file that has none, all by hand."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return head + begin + generated(contract) + end + tail if end else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    check = parser.parse_args().check
    outdated = 0
    for file in sorted(REPOSITORY.glob("*/*/config.pbtxt")):
        text = file.read_text(encoding="utf-8")
        new = renewed(text, contract_of(file))
        if new is None or new == text:
            continue
        outdated += 1
        print(f"{file.relative_to(REPOSITORY)}: {'out of date' if check else 'written'}")
        if not check:
            file.write_text(new, encoding="utf-8")
    return int(check and outdated > 0)


if __name__ == "__main__":
    sys.exit(main())
