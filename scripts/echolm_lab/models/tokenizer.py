"""The pair's tokenizer, trained on the workload."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from echolm_lab.tasks import Workload
from echolm_lab.tasks.episodes import ImitationRows, KnowledgeRows, system_prompt
from echolm_lab.tasks.prompt import SPECIAL_TOKENS

#: A space joins the word behind it only where that word is plain lower-case
#: English; slot values keep the same tokens wherever they stand.
SPLIT = r" \p{Ll}+(?=[\s,?]|$)|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def train_tokenizer(vocabulary: int, rows: int) -> Tokenizer:
    """A byte-level BPE tokenizer with single digits over invented and catalogue text."""
    workload = Workload(seed=0)
    invented, known = ImitationRows(workload, Random(1)), KnowledgeRows(workload, Random(2))

    def texts() -> Iterator[str]:
        for _ in range(rows):
            for turn in invented.row(6) + known.row(3):
                yield turn.request
                yield turn.answer
            yield system_prompt(invented._rng)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer
