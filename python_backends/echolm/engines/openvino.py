"""The engine on CPUs: OpenVINO GenAI's continuous batching, with prefix caching.

The pipeline lives in a worker process; :mod:`~echolm.engines.worker` says why.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from echolm.engines.base import (
    FINISH_CANCELLED,
    FINISH_LENGTH,
    FINISH_STOP,
    GenerationChunk,
    GenerationRequest,
    check_context_length,
)
from echolm.engines.options import at_least, read_options
from echolm.engines.prefix_cache import BLOCK_TOKENS, PrefixCacheEstimate
from echolm.engines.text import IncrementalDecoder, StopWords
from echolm.engines.worker.messages import Event
from echolm.engines.worker.parent import WorkerEngine
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError

logger = logging.getLogger("echolm")

MODEL_FILES = tuple(
    f"openvino_{part}.{ending}"
    for part in ("model", "tokenizer", "detokenizer")
    for ending in ("xml", "bin")
)
_GGUF_FILES = ("config.json", "tokenizer.json", "generation_config.json")
"""What describes a GGUF file."""


@dataclass(frozen=True)
class OpenVINOOptions:
    """Options of the engine.

    Attributes:
        model: a GGUF file, which is loaded in place of ``openvino_model.xml``; the model's folder
            then has the files that describe it, as ``echolm build`` writes them.
        context_length: most tokens of prompt and answer together; 0: as ``config.json`` says.
        cache_size_gb: memory for the KV cache, shared by all requests and cached prefixes.
        num_kv_blocks: size of the KV cache in blocks of 32 tokens; 0: as ``cache_size_gb`` says.
            Set it for a small LLM: a gigabyte holds so many of its blocks that OpenVINO takes
            several times as long for each request once the cache is full.
        max_num_batched_tokens: most tokens in one step. Larger makes long prompts faster and
            the answers that are being generated meanwhile stutter more.
        max_num_seqs: most requests in one step; more wait.
        prefix_caching: keep the KV cache of prompts for prompts that start alike.
        threads: threads of a step; 0: one per core that the process may use.
        inference_precision: ``f32`` gives the same text however requests are batched; ``bf16``
            is faster on CPUs that have it, and an answer then can depend on its neighbours;
            empty: what OpenVINO prefers on the machine.
        kv_cache_precision: ``u8`` halves the cache and is a little faster and less exact; empty:
            as ``inference_precision`` implies.
        nice: lower the priority of the engine's process by this.
    """

    model: str = ""
    context_length: int = 0
    cache_size_gb: int = 1
    num_kv_blocks: int = 0
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 64
    prefix_caching: bool = True
    threads: int = 0
    inference_precision: str = "f32"
    kv_cache_precision: str = ""
    nice: int = 0

    def __post_init__(self) -> None:
        at_least("openvino", self, 0, "context_length", "num_kv_blocks", "threads", "nice")
        at_least("openvino", self, 1, "cache_size_gb", "max_num_batched_tokens", "max_num_seqs")


@dataclass
class _Active:
    """A request in flight."""

    request: GenerationRequest
    handle: Any
    prompt_tokens: list[int]
    # None where nobody looks at the text before the end: no detokenization per token then.
    decoder: IncrementalDecoder | None
    stop: StopWords
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sent_logprobs: int = 0
    finish: Any = None

    def chunk(self, text: str, finish_reason: str | None) -> GenerationChunk:
        logprob = sum(self.logprobs) if self.request.sampling.logprobs else None
        new, self.sent_logprobs = self.logprobs[self.sent_logprobs :], len(self.logprobs)
        counts = len(self.prompt_tokens), len(self.tokens)
        stop = self.stop.matched
        return GenerationChunk(text, finish_reason, *counts, logprob, stop, tuple(new))


class OpenVINOStepper:
    """:class:`~echolm.engines.worker.stepper.Stepper` over one ``ContinuousBatchingPipeline``."""

    def __init__(self, model_dir: Path, options: OpenVINOOptions) -> None:
        # Imported where it is used, so that the caller's process stays without it.
        import openvino
        import openvino_genai as genai

        self._context_length = options.context_length or read_context_length(model_dir)
        scheduler = genai.SchedulerConfig()
        if options.num_kv_blocks:
            scheduler.num_kv_blocks = options.num_kv_blocks
        else:
            scheduler.cache_size = options.cache_size_gb
        scheduler.max_num_batched_tokens = options.max_num_batched_tokens
        scheduler.max_num_seqs = options.max_num_seqs
        scheduler.enable_prefix_caching = options.prefix_caching
        scheduler.dynamic_split_fuse = True
        threads = options.threads or len(os.sched_getaffinity(0))
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "sampler_num_threads": threads,
            "INFERENCE_PRECISION_HINT": options.inference_precision,
            "KV_CACHE_PRECISION": options.kv_cache_precision,
        }
        properties = {name: value for name, value in properties.items() if value}
        pipeline = genai.ContinuousBatchingPipeline
        try:
            loaded = options.model or model_dir
            self._pipeline = pipeline(loaded, scheduler, "CPU", properties, {})
        except RuntimeError as error:
            raise ConfigurationError(
                f"engine openvino: expected a language model that OpenVINO can load in {loaded}, "
                f"got: {error}"
            ) from error
        self._encode, self._decode = _tokenizer(model_dir, self._pipeline)
        self._end_ids = read_end_ids(model_dir)
        blocks = options.num_kv_blocks or read_cache_blocks(model_dir, options)
        self._prefixes = PrefixCacheEstimate(blocks) if options.prefix_caching and blocks else None
        self._tensor = openvino.Tensor
        self._active: dict[str, _Active] = {}
        self._numbers = itertools.count(1)
        self._running = genai.GenerationStatus.RUNNING
        self._ignored = genai.GenerationStatus.IGNORED
        self._length = genai.GenerationFinishReason.LENGTH

    @property
    def busy(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def add(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        check_context_length(self._context_length, sampling.max_tokens)  # before the tokenizer runs
        prompt_tokens = self._encode(request.prompt, request.add_special_tokens)
        check_context_length(self._context_length, sampling.max_tokens, len(prompt_tokens))
        try:
            config = generation_config(request)
            config.stop_token_ids = set(self._end_ids)
            ids = self._tensor(np.array([prompt_tokens], np.int64))
            handle = self._pipeline.add_request(next(self._numbers), ids, config)
        except RuntimeError as error:
            raise InvalidRequestError(f"request: the engine refused it: {error}") from error
        if self._prefixes is not None:
            self._prefixes.prompt(prompt_tokens)
        decoder = IncrementalDecoder(self._decode) if request.streaming or sampling.stop else None
        stop = StopWords(sampling.stop)
        self._active[request.request_id] = _Active(request, handle, prompt_tokens, decoder, stop)

    def cancel(self, request_id: str) -> Event | None:
        active = self._active.pop(request_id, None)
        if active is None:
            return None
        text = ""
        if not active.request.streaming:
            self._take_tokens(active)
            text = "".join(active.pieces) if active.decoder else self._decode(active.tokens)
        # The next step() drops the request and frees its blocks.
        active.handle.cancel()
        return request_id, active.chunk(text, FINISH_CANCELLED)

    def step(self) -> list[Event]:
        self._pipeline.step()
        events: list[Event] = []
        for request_id, active in list(self._active.items()):
            try:
                event = self._look(active)
            except Exception as problem:
                logger.exception("engine openvino: a request failed")
                active.handle.cancel()
                event = UnavailableError(f"engine openvino: {type(problem).__name__}")
            if event is None:
                continue
            events.append((request_id, event))
            if isinstance(event, Exception) or event.is_last:
                del self._active[request_id]
                if self._prefixes is not None:
                    self._prefixes.answered(active.prompt_tokens + active.tokens)
        return events

    def prefix_hit_tokens(self) -> int | None:
        """Estimated: OpenVINO GenAI's metrics are of requests and memory only."""
        return None if self._prefixes is None else self._prefixes.hit_tokens

    def _look(self, active: _Active) -> GenerationChunk | Exception | None:
        """What is new about a request after a step; None if nothing is."""
        status = active.handle.get_status()
        if active.decoder is None and status == self._running:
            return None
        if status == self._ignored:
            return UnavailableError("engine openvino: the KV cache is full; try again later")
        new = self._take_tokens(active)
        ended = status != self._running
        if active.decoder is None:
            return active.chunk(self._decode(active.tokens), self._reason(active))
        text = active.stop.push(active.decoder.push(new))
        if ended and active.stop.matched is None:
            text += active.stop.push(active.decoder.flush())
        reason: str | None = None
        if active.stop.matched is not None:
            if not ended:
                active.handle.stop()
            reason = FINISH_STOP
        elif ended:
            text += active.stop.flush()
            reason = self._reason(active)
        if not active.request.streaming:
            # Only the stop words are wanted before the end.
            active.pieces.append(text)
            text = "" if reason is None else "".join(active.pieces)
        return active.chunk(text, reason) if text or reason is not None else None

    def _take_tokens(self, active: _Active) -> list[int]:
        """Read the tokens that the pipeline has made since the last time.

        Only while ``can_read()``: ``read()`` on an empty queue waits for ever.
        """
        before = len(active.tokens)
        while active.handle.can_read():
            for output in active.handle.read().values():
                active.tokens += output.generated_ids
                active.finish = output.finish_reason
                if active.request.sampling.logprobs:
                    active.logprobs += output.generated_log_probs
        return active.tokens[before:]

    def _reason(self, active: _Active) -> str:
        return FINISH_LENGTH if active.finish == self._length else FINISH_STOP


def generation_config(request: GenerationRequest) -> Any:
    """OpenVINO GenAI's configuration for a request."""
    import openvino_genai as genai

    sampling = request.sampling
    config = genai.GenerationConfig()
    config.max_new_tokens = sampling.max_tokens
    config.frequency_penalty = sampling.frequency_penalty
    config.presence_penalty = sampling.presence_penalty
    config.repetition_penalty = sampling.repetition_penalty
    config.min_new_tokens = sampling.min_tokens
    config.logprobs = 1 if sampling.logprobs else 0
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        if sampling.top_k:
            config.top_k = sampling.top_k
        # OpenVINO's default is a fixed seed. The generator takes 32 bits.
        seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
        config.rng_seed = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return config


def read_context_length(model_dir: Path) -> int:
    """``max_position_embeddings`` of ``config.json``; ConfigurationError if it is not there."""
    path = model_dir / "config.json"
    try:
        length = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError) as error:
        length = error
    if not isinstance(length, int) or length <= 0:
        raise ConfigurationError(
            f"{path}: expected a positive max_position_embeddings, got {length!r}; set the "
            "option context_length"
        )
    return length


def read_cache_blocks(model_dir: Path, options: OpenVINOOptions) -> int:
    """About how many blocks of KV cache ``cache_size_gb`` is; 0 if ``config.json`` does not say."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        numbers = 2 * int(config["num_hidden_layers"]) * int(heads) * int(size) * BLOCK_TOKENS
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
    # OpenVINO keeps 2 bytes a number on CPUs whatever the precision of inference.
    num_bytes = {"u8": 1, "f32": 4}.get(options.kv_cache_precision, 2)
    return options.cache_size_gb * 2**30 // (numbers * num_bytes)


def read_end_ids(model_dir: Path) -> frozenset[int]:
    """``eos_token_id`` of ``generation_config.json``: ids of the tokens that end an answer."""
    try:
        text = (model_dir / "generation_config.json").read_text(encoding="utf-8")
        ids = json.loads(text).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return frozenset()
    return frozenset(id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int)


def _tokenizer(
    model_dir: Path, pipeline: Any
) -> tuple[Callable[[str, bool], list[int]], Callable[[Sequence[int]], str]]:
    """A text to token ids, with or without special tokens around it; and ids to text without them.

    OpenVINO's tokenizer and detokenizer are models that take 0.1 ms a call, far too much per token;
    the ``tokenizers`` package takes 1 µs, where the folder has its file.
    """
    path = model_dir / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(text: str, special: bool) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=special).ids)
    else:
        tokenizer = pipeline.get_tokenizer()

        def encode(text: str, special: bool) -> list[int]:
            ids = tokenizer.encode(text, add_special_tokens=special).input_ids
            return [int(id) for id in ids.data.reshape(-1)]

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""

    return encode, decode


def make_stepper(model_dir: str, options: Mapping[str, Any]) -> OpenVINOStepper:
    """The engine's part in the worker process."""
    return OpenVINOStepper(Path(model_dir), OpenVINOOptions(**options))


def check(model_dir: Path, options: Mapping[str, Any]) -> OpenVINOOptions:
    """See :func:`echolm.engines.check_engine`."""
    checked = read_options(OpenVINOOptions, options, "openvino")
    if find_spec("openvino_genai") is None:
        raise ConfigurationError(
            "engine openvino: expected the package openvino-genai, got none; "
            "`pip install openvino-genai`"
        )
    files = [model_dir / name for name in (_GGUF_FILES if checked.model else MODEL_FILES)]
    files += [Path(checked.model)] if checked.model else []
    if missing := [file for file in files if not (file.is_file() and file.stat().st_size)]:
        raise ConfigurationError(
            f"engine openvino: expected an OpenVINO language model, got no file {missing[0]}, or "
            "an empty one; restore it, or write a model repository from a checkpoint: "
            "`echolm build --help`"
        )
    return checked


def create(model_dir: Path, options: Mapping[str, Any]) -> WorkerEngine:
    """Check what can be checked here, then start the worker."""
    checked = check(model_dir, options)
    return WorkerEngine(
        "openvino",
        "stepper",
        "echolm.engines.openvino:make_stepper",
        {"model_dir": str(model_dir.resolve()), "options": asdict(checked)},
        nice=checked.nice,
    )
