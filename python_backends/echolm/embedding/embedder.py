"""Token ids to unit vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from echolm.embedding.runtimes import default_threads, open_session
from echolm.embedding.session import Ids, Session, Vectors
from echolm.embedding.spec import MAX_PARTS, MODEL_FILE, EmbedderSpec
from echolm.errors import ConfigurationError, InvalidRequestError

_UNIT_TOLERANCE = 0.01
"""A model in BF16 misses unit length by less than this; one without normalisation does not."""


class OnnxEmbedder:
    """Any sentence-embedding ONNX whose tensors are ``input_ids``, ``attention_mask``
    and ``embedding``, with pooling and normalisation inside.

    May be called from several threads. Rows of similar length run together, so that a
    long text in the batch does not make the short ones pay for its padding.

    Attributes:
        name: identity of the model; vectors of different names must not be mixed.
        dimension: length D of a vector.
        precision: of the matrix products on this CPU: ``fp32``, ``bf16`` or ``int8``.
    """

    def __init__(
        self, model: Path, spec: EmbedderSpec, *, threads: int = 0, session: Session | None = None
    ) -> None:
        """Load and try the model.

        Args:
            threads: for one call; 0: as many as the process has cores, at most 4.
            session: a loaded model in place of ``model``, for tests.

        Raises:
            ConfigurationError: the file or runtime is missing, or the model does not
                give unit vectors of ``spec.dimension``.
        """
        if threads < 0:
            message = f"embedder: threads: expected 0 (automatic) or more, got {threads}"
            raise ConfigurationError(message)
        self.spec = spec
        self._session = session or open_session(model, spec, threads or default_threads())
        self.name, self.dimension = spec.name, spec.dimension
        self.precision = self._session.precision
        self._probe(model)

    @classmethod
    def load(cls, directory: Path, *, threads: int = 0) -> OnnxEmbedder:
        """The model of a directory that ``scripts/build_embedder.py`` wrote; errors as above."""
        return cls(directory / MODEL_FILE, EmbedderSpec.read(directory), threads=threads)

    def embed(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """Embed n ≥ 1 texts.

        A text may be embedded in parts (:mod:`echolm.embedding.tokenizer`), which do not see each
        other: its vector is then the mean of theirs, of length 1.

        Args:
            input_ids: INT64 ``[n, seq]``, with no more tokens in a part than the model takes.
            attention_mask: INT64 ``[n, seq]``; 0 for padding, else the number of the token's part.

        Returns:
            FP32 ``[n, D]``; each row has length 1.

        Raises:
            InvalidRequestError: a wrong shape, type or value.
        """
        self.check(input_ids, attention_mask)
        if attention_mask.max() > 1:
            return self._embed_parts(input_ids, attention_mask)
        lengths = _lengths(attention_mask)
        vectors = np.empty((len(lengths), self.dimension), np.float32)
        for rows in length_groups(lengths, self._session.call_tokens):
            seq = int(lengths[rows].max())
            ids = np.ascontiguousarray(input_ids[rows, :seq])
            vectors[rows] = self._session.run(ids, np.ascontiguousarray(attention_mask[rows, :seq]))
        # BF16 leaves lengths off by up to 1e-3, and ranks with them.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _embed_parts(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """The same for rows of several parts, each of which becomes a row."""
        parts = [
            (row, input_ids[row, mask == part])
            for row, mask in enumerate(attention_mask)
            for part in range(1, MAX_PARTS + 1)
            if part in mask
        ]
        shape = len(parts), max(ids.size for _, ids in parts)
        alone, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for k, (_, ids) in enumerate(parts):
            alone[k, : ids.size], mask[k, : ids.size] = ids, 1
        vectors = np.zeros((len(input_ids), self.dimension), np.float32)
        np.add.at(vectors, [row for row, _ in parts], self.embed(alone, mask))
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def warm_up(self) -> None:
        """Prepare for usual batches, so that the first requests do not wait for it."""
        self._session.warm_up()

    def check(self, input_ids: Ids, attention_mask: Ids) -> None:
        """Raises InvalidRequestError for what :meth:`embed` does not take."""
        for name, tensor in (("input_ids", input_ids), ("attention_mask", attention_mask)):
            if tensor.dtype != np.int64 or tensor.ndim != 2:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise InvalidRequestError.of(name, "INT64 [n, seq]", got)
        if input_ids.shape != attention_mask.shape:
            expected = f"the shape of input_ids, {list(input_ids.shape)}"
            raise InvalidRequestError.of("attention_mask", expected, list(attention_mask.shape))
        if input_ids.size == 0:
            expected = "at least one row and one token"
            raise InvalidRequestError.of("input_ids", expected, list(input_ids.shape))
        known = (attention_mask >= 0) & (attention_mask <= MAX_PARTS)
        if not known.all() or not attention_mask.any(axis=1).all():
            expected = f"0, or a part's number from 1 to {MAX_PARTS}, in each row"
            raise InvalidRequestError.of("attention_mask", expected, "something else")
        if attention_mask.max() == 1:  # padding between tokens is embedded with them
            longest = int(_lengths(attention_mask).max())
        else:
            parts = np.arange(1, MAX_PARTS + 1)[:, None, None]
            longest = int((attention_mask == parts).sum(axis=2).max())
        if longest > self.spec.max_tokens:
            expected = f"at most {self.spec.max_tokens} tokens in a part"
            raise InvalidRequestError.of("input_ids", expected, longest)
        limit = self.spec.vocabulary
        if input_ids.min() < 0 or (limit is not None and input_ids.max() >= limit):
            expected = f"ids from 0 to below {limit or 'the vocabulary size'}"
            got = f"{input_ids.min()} to {input_ids.max()}"
            raise InvalidRequestError.of("input_ids", expected, got)

    def _probe(self, model: Path) -> None:
        ids = np.zeros((2, 4), np.int64)
        try:
            vectors = self._session.run(ids, np.ones_like(ids))
        except Exception as error:  # whatever the runtime raises means the same here
            message = f"embedder: {model} fails on two rows of four tokens: {error}"
            raise ConfigurationError(message) from error
        if vectors.shape != (2, self.dimension):
            raise ConfigurationError(
                f"embedder: {model}: expected {self.dimension} dimensions, as embedder.json or the "
                f"settings say, got shape {list(vectors.shape)} for 2 texts"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.abs(lengths - 1).max() < _UNIT_TOLERANCE:  # also true for NaN
            raise ConfigurationError(
                f"embedder: {model}: expected vectors of length 1, got {lengths.tolist()}; "
                "put the normalisation inside the graph"
            )


def _lengths(attention_mask: Ids) -> Ids:
    """The length of each row up to its last token."""
    after = np.argmax(attention_mask[:, ::-1] != 0, axis=1)  # padding behind it
    return np.asarray(attention_mask.shape[1] - after, np.int64)


def length_groups(lengths: Ids, call_tokens: int) -> Iterator[npt.NDArray[np.intp]]:
    """Split a batch of rows with these lengths where the padding saved is worth another call.

    Args:
        call_tokens: what a call costs by itself, in tokens.

    Yields:
        Row indices of each group, shortest rows first; together all rows, once.
    """
    order = np.argsort(lengths, kind="stable")
    pending = [(0, len(order))]
    while pending:
        start, stop = pending.pop()
        sizes = lengths[order[start:stop]]
        saved = np.arange(1, len(sizes)) * (sizes[-1] - sizes[:-1])
        if len(saved) and saved.max() > call_tokens:
            middle = start + int(saved.argmax()) + 1
            pending += [(middle, stop), (start, middle)]
        else:
            yield order[start:stop]
