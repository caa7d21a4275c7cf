"""Proofs by which EchoLM's models know each other's calls from anybody else's.

Triton lets whoever reaches its ports call every model. Retriever and router would tell any tenant's
examples, the example manager would store anything, and an LLM would answer past the router. So the
caller signs what it sends with the key that all of them have, ``feedback.signing_key``::

    proof     = <milliseconds since the epoch>.<HMAC-SHA256 in hexadecimal>
    is signed = "echolm call 1\\n" <purpose> "\\n" <milliseconds> "\\n", and of each signed input
                that there is, by name: <name> " " <bytes> "\\n" <its contents as Triton has them>

A proof travels as the parameter ``PROOF`` of the request, which an ensemble hands on to its steps.
Clients never see one. Who has overheard one, on a network without TLS, can send the same again any
number of times until it is ``TOLERANCE_S`` old: an LLM then answers the same prompt each time, with
whatever sampling parameters and other unsigned inputs come beside it; an interaction that is stored
already is found to be, and a report of a request that has ended is ignored. Nothing is kept about
proofs.
``front_door/proof.h`` makes the same.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError

PROOF = "echolm_proof"
"""Parameter of a request that holds the proof."""

SELECTION = "selection"
"""Purpose of calls to retriever and router, alone and in their ensemble; else the model's name."""

ASKED = ("llm", "messages", "report", "system_prompt", "tenant", "text_input")
"""Signed inputs of calls to retriever, router and LLMs: what is asked, for whom, and of whom."""

TOLERANCE_S = 300.0
"""By which clocks of two servers may differ, and for which a call may wait."""


class CallProofs:
    """Makes and checks proofs.

    Args:
        key: a secret that is not empty, the same for all models.
        now: seconds since the epoch.
    """

    def __init__(self, key: str, now: Callable[[], float] = time.time) -> None:
        self._keyed = hmac.new(key.encode(), digestmod="sha256")
        self._now = now

    def sign(self, purpose: str, inputs: Mapping[str, bytes]) -> str:
        """The proof of a call.

        Args:
            inputs: contents of the signed inputs as Triton has them, by name.
        """
        at = str(int(self._now() * 1_000))
        return f"{at}.{self._code(purpose, at, inputs)}"

    def check(self, purpose: str, inputs: Mapping[str, bytes], proof: Any) -> None:
        """Raise InvalidRequestError unless the call was signed with the key a short time ago."""
        at, _, code = proof.partition(".") if isinstance(proof, str) else ("", "", "")
        if not (at.isascii() and at.isdigit() and len(at) < 16 and code.isascii()):
            raise _refused(purpose, "none" if not proof else "something else")
        if not hmac.compare_digest(code, self._code(purpose, at, inputs)):
            raise _refused(purpose, "one of another call or key")
        if abs(int(at) / 1_000 - self._now()) > TOLERANCE_S:
            raise _refused(purpose, f"one of another time than {TOLERANCE_S:g} s around now")

    def _code(self, purpose: str, at: str, inputs: Mapping[str, bytes]) -> str:
        keyed = self._keyed.copy()
        keyed.update(f"echolm call 1\n{purpose}\n{at}\n".encode())
        for name in sorted(inputs):
            keyed.update(f"{name} {len(inputs[name])}\n".encode() + inputs[name])
        return keyed.hexdigest()


def contents(array: NDArray[Any]) -> bytes:
    """An input's contents as Triton has them; of a text tensor, the elements are bytes."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join([len(e).to_bytes(4, "little") + e for e in array.reshape(-1).tolist()])


def _refused(purpose: str, got: str) -> InvalidRequestError:
    return InvalidRequestError.of(
        purpose,
        "a call by EchoLM itself, with its proof",
        got,
        "call the model `echolm` or `echolm_stream`, which need none",
    )
