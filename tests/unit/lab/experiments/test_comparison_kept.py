"""What a long measurement keeps, so that one that was cut goes on."""

from __future__ import annotations

import json
from pathlib import Path

from echolm_lab.experiments.comparison import Kept


class Measuring:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> dict[str, int]:
        self.times += 1
        return {"times": self.times}


async def test_a_part_is_measured_once_also_by_the_next_process(tmp_path: Path) -> None:
    file, measure = tmp_path / "work" / "kept.json", Measuring()
    first = Kept(file)
    assert await first.part("a", measure) == {"times": 1}
    assert await first.part("a", measure) == {"times": 1}
    assert await Kept(file).part("a", measure) == {"times": 1}
    assert await Kept(file).part("b", measure) == {"times": 2}
    assert json.loads(file.read_text()) == {"a": {"times": 1}, "b": {"times": 2}}
    assert [path.name for path in file.parent.iterdir()] == ["kept.json"]


async def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    measure = Measuring()
    await Kept().part("a", measure)
    await Kept().part("a", measure)
    assert measure.times == 2
