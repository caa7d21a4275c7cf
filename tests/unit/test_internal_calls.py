from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.front_door import build
from echolm.internal_calls import TOLERANCE_S, CallProofs, contents
from echolm.settings import FeedbackSettings, Settings, TritonSettings
from echolm.wiring.internal_calls import build_call_proofs, llm_call_proofs
from pydantic import SecretStr

INPUTS = {"tenant": b"\1\0\0\0t", "text_input": b"\2\0\0\0hi"}


def proofs(key: str = "key", now: float = 1_000.0) -> CallProofs:
    return CallProofs(key, lambda: now)


def test_a_proof_holds_for_its_call() -> None:
    proof = proofs().sign("selection", INPUTS)
    proofs(now=1_000.0 + TOLERANCE_S - 1).check("selection", INPUTS, proof)
    proofs(now=1_000.0 - TOLERANCE_S + 1).check("selection", INPUTS, proof)


@pytest.mark.parametrize(
    ("checker", "purpose", "inputs"),
    [
        (proofs("other"), "selection", INPUTS),
        (proofs(), "example_manager", INPUTS),
        (proofs(), "selection", {**INPUTS, "tenant": b"\1\0\0\0u"}),
        (proofs(), "selection", {"text_input": INPUTS["text_input"]}),
        (proofs(), "selection", {**INPUTS, "report": b""}),
        (proofs(now=1_001.0 + TOLERANCE_S), "selection", INPUTS),
        (proofs(now=999.0 - TOLERANCE_S), "selection", INPUTS),
    ],
)
def test_a_proof_is_of_no_other_call_key_or_time(
    checker: CallProofs, purpose: str, inputs: dict[str, bytes]
) -> None:
    proof = proofs().sign("selection", INPUTS)
    with pytest.raises(InvalidRequestError, match="call the model `echolm`"):
        checker.check(purpose, inputs, proof)


@pytest.mark.parametrize(
    "proof",
    [None, "", 7, True, ".", "1000000", "1000000.", "x.y", "-1.ab", "9" * 400 + ".a", "1.é"],
)
def test_what_is_no_proof_is_refused(proof: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected a call by EchoLM itself"):
        proofs().check("selection", INPUTS, proof)


def test_contents_are_as_triton_has_them() -> None:
    words = np.array([[b"ab"], ["é".encode()], [b""]], dtype=np.object_)
    assert contents(words) == b"\2\0\0\0ab\2\0\0\0\xc3\xa9\0\0\0\0"
    assert contents(np.array([[1.5]], np.float32)) == b"\0\0\xc0?"


def test_an_llm_is_open_where_there_is_no_key_or_it_is_meant_to_be() -> None:
    keyed = FeedbackSettings(signing_key=SecretStr("key"))
    direct = TritonSettings(direct_llm_calls=True)
    assert llm_call_proofs(Settings()) is None
    assert llm_call_proofs(Settings(feedback=keyed, triton=direct)) is None
    assert llm_call_proofs(Settings(feedback=keyed)) is not None
    with pytest.raises(ConfigurationError, match=r"feedback\.signing_key"):
        build_call_proofs(Settings())


PROGRAM = """
#include "proof.h"
using namespace echolm;
int main(int, char** arguments) {
  Tensors inputs{{"embedding", TRITONSERVER_TYPE_INT32, {1}, "1234"},
                 {"tenant", TRITONSERVER_TYPE_BYTES, {1, 1}, Packer().text("t").packed},
                 {"text_input", TRITONSERVER_TYPE_BYTES, {1, 1},
                  Packer().text(std::string(atoi(arguments[1]), 'x')).packed}};
  puts(Proofs().of("selection", inputs).c_str());
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_the_front_door_makes_the_same_proofs(tmp_path: Path) -> None:
    source, program = tmp_path / "main.cc", tmp_path / "main"
    source.write_text(PROGRAM)
    folder = Path(build.__file__).parent
    command = ["g++", "-std=c++17", f"-I{folder}", "-Wl,--unresolved-symbols=ignore-all"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    for key in ("key", "k" * 100):
        for length in (0, 1, 20, 55, 56, 64, 1_000):
            environment = {"ECHOLM_FEEDBACK__SIGNING_KEY": f" {key}\n"}
            settings = FeedbackSettings(signing_key=SecretStr(f" {key}\n"))
            made = subprocess.run(
                [str(program), str(length)], env=environment, capture_output=True, check=True
            )
            proof = made.stdout.decode().strip()
            assert re.fullmatch(r"\d{13}\.[0-9a-f]{64}", proof)
            text = length.to_bytes(4, "little") + b"x" * length
            proofs = CallProofs(settings.signing_key.get_secret_value())
            proofs.check("selection", {**INPUTS, "text_input": text}, proof)
    assert sys.byteorder == "little"
