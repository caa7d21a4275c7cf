"""The front door under the address, leak and thread sanitizers, in a real Triton."""

from __future__ import annotations

from pathlib import Path

import pytest
from echolm.front_door.build import compile_front_door
from front_door import plan, running_front_door
from front_door_calls import Stream, outcome, script, storm
from sanitizers import RUNTIME, environment, findings, runtime, sanitized_triton
from triton_calls import eventually

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("sanitizer", RUNTIME)
def test_no_leak_no_misuse_of_memory_no_race(sanitizer: str, tmp_path: Path) -> None:
    if not runtime(sanitizer):
        pytest.skip(f"no g++ with {RUNTIME[sanitizer]}")
    library = tmp_path / "libtriton_echolm.so"
    compile_front_door(library, sanitizer)
    options = environment(tmp_path, sanitizer)
    triton = sanitized_triton(tmp_path, sanitizer)
    with running_front_door(tmp_path, library, options, triton) as door:
        storm(door, 150, seed=2)
        hanging = script({**plan(hang=0), "settings": {"request_timeout_ms": 50}}, plan("beta"))
        with door.shut():
            assert outcome(lambda: door.ask(hanging)) == ""
            late = script(plan(), selection="hang")
            short = script({**plan(), "settings": {"selection_timeout_ms": 50}})
            assert [outcome(lambda row=row: door.ask(row)) for row in (short, late)] == [""] * 2
            left = Stream(door, script(plan(pieces=["a", "b"], hang=1)))
            left.next()
            left.leave()
        assert eventually(lambda: door.events("router", "report", reason="late"))
        assert eventually(lambda: door.events("router", "report", reason="cancelled"))
        assert door.triton.poll() is None
        if sanitizer == "address":
            client = door.client()
            for model in ("echolm", "echolm_stream"):
                door.unload(model)
                assert eventually(lambda model=model: not client.is_model_ready(model))
            check = tmp_path / "check-leaks"
            check.touch()
            assert eventually(lambda: not check.exists())
        door.triton.kill()
    assert findings(tmp_path) == []
