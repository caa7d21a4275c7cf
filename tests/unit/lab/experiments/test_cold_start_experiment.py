"""The simulation runs the product; its embedder is replaced by words' hashes here."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from echolm.primitives import Sampling
from echolm.settings import Settings
from echolm.words import hash_word, words_of
from echolm_lab.experiments.cold_start import BankingRequests, Lab, calibration_error, measure
from echolm_lab.experiments.simulated_llms import PAIRS, JudgeSkill, SimulatedLLM, Skill, Truth
from echolm_lab.experiments.simulation import Record
from echolm_lab.tasks.second_workload import LabelledRequest, SecondWorkload
from numpy.typing import NDArray

JUDGED = """\
<request>
{request}
</request>
<answer_a>
{a}
</answer_a>
<answer_b>
{b}
</answer_b>
"""


class WordEmbedder:
    """Texts that share words are similar."""

    name, dimension = "words", 64

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in words_of(text):
                vectors[row, hash_word(word) % self.dimension] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self(texts)


def truth_of(*items: LabelledRequest) -> Truth:
    truth = Truth()
    truth.add(items)
    return truth


FIRST = LabelledRequest("How much salt?", 1, "examples", "Two grams.")
SECOND = LabelledRequest("How much sugar?", 2, "examples", "Three grams.")


def ask(llm: SimulatedLLM, prompt: str) -> str:
    return asyncio.run(llm.generate("id", prompt, Sampling(), None)).text


def test_only_an_example_of_the_same_intent_helps() -> None:
    llm = SimulatedLLM("small", Skill.uniform(0.0, 1.0), truth_of(FIRST, SECOND), seed=1)
    request = "<|user|>How much salt?<|assistant|>"

    def with_example(answer: str) -> str:
        return ask(llm, f"<|user|>Salt?<|assistant|>{answer}<|end|>{request}")

    assert ask(llm, request) != FIRST.answer
    assert with_example(SECOND.answer) != FIRST.answer
    assert with_example(FIRST.answer) == FIRST.answer


@pytest.mark.parametrize(
    ("skill", "replies"),
    [
        (JudgeSkill(wrong=0, tie=1, position=0), ["[[A]]", "[[B]]", "[[C]]"]),
        (JudgeSkill(wrong=1, tie=1, position=0), ["[[B]]", "[[A]]", "[[C]]"]),
        (JudgeSkill(position=1), ["[[A]]", "[[A]]", "[[A]]"]),
    ],
)
def test_a_judge_has_the_faults_it_was_given(skill: JudgeSkill, replies: list[str]) -> None:
    llm = SimulatedLLM("large", Skill.uniform(1, 1), truth_of(FIRST), seed=1, judging=skill)
    pairs = (("Two grams.", "No idea."), ("No idea.", "Two grams."), ("No idea.", "Who knows."))
    said = [ask(llm, JUDGED.format(request=FIRST.text, a=a, b=b)) for a, b in pairs]
    assert said == replies


def record(llm: str, small: float, large: float = 0.9, predicted: float = 0.9) -> Record:
    qualities = {"small_llm": small, "large_llm": large}
    expected = {"small_llm": predicted, "large_llm": predicted}
    values = {"right": True, "qualities": qualities, "best": qualities, "predicted": expected}
    rest = {"known": True, "helped": True, "similarity": 0.8, "utility": 0.9, "examples": 1}
    return Record(item=FIRST, llm=llm, solicited=False, answer="", **values, **rest)  # type: ignore[arg-type]


def test_an_oracle_offloads_where_nothing_is_lost_and_at_the_same_quality_more() -> None:
    records = [record("small_llm", 0.9), record("large_llm", 0.9), record("small_llm", 0.5)]
    window = measure(records, Settings())
    assert window.oracle == pytest.approx(2 / 3)
    assert window.fitting == pytest.approx(1 / 2)
    assert window.offloaded == pytest.approx(2 / 3)
    assert window.of_oracle == pytest.approx(2 / 3)  # the same loss buys all three
    assert window.loss == pytest.approx(0.4 / 3)
    assert window.win_rate == pytest.approx(0.5 - 0.2 / 3)


def test_calibration_error_is_that_of_bins() -> None:
    assert calibration_error([0.91, 0.93], [0.94, 0.90]) == pytest.approx(0.0)
    assert calibration_error([0.15, 0.95], [0.25, 0.95]) == pytest.approx(0.05)


def test_past_and_stream_of_banking_requests_do_not_overlap(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,category\n" + "".join(f"text {k},c{k % 3}\n" for k in range(20)))
    requests = BankingRequests([file])
    past, stream = requests.stream(10, seed=10_001), requests.stream(10, seed=1)
    assert {item.text for item in past} & {item.text for item in stream} == set()
    assert len({item.intent for item in stream}) == 3


async def test_a_simulation_stores_rates_judges_and_learns() -> None:
    lab = Lab(Settings(), WordEmbedder(), SecondWorkload())  # type: ignore[arg-type]
    simulation = lab.start(1, *PAIRS["helped"], rated=0.5, past=50)
    stored = simulation.store.count()
    records = await simulation.serve(lab.requests.stream(100, seed=1))
    assert len(records) == 100
    assert 0 < stored < simulation.store.count()
    assert simulation.judgements.counts["shadow: rated"] > 0
    assert sum(simulation.bandit.arms["large_llm"].evidence) > 20
    assert simulation.featurizer.statistics.version == 1
    assert all(learner.skipped == 0 for learner in simulation.learners)
