"""The sections of ``echolm.toml``, each key with its default and its meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from echolm.contracts import MAX_EXAMPLES
from echolm.settings.environment import ENV_PREFIX, with_values_of_files

_REDIS_SCHEMES = ("redis", "rediss")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
    """What a single request may ask for."""

    max_input_chars: int = Field(32_768, gt=0, description="longest text_input, in characters")
    max_tokens: int = Field(4_096, gt=0, description="largest max_tokens a caller may ask for")
    default_max_tokens: int = Field(128, gt=0)
    max_stop_words: int = Field(16, ge=0)
    max_in_flight: int = Field(
        2_048, gt=0, description="requests in one router process; more are refused: UNAVAILABLE"
    )
    request_timeout_s: float = Field(120.0, gt=0, description="an LLM that takes longer has failed")

    @model_validator(mode="after")
    def _default_within_limit(self) -> Limits:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("default_max_tokens must not exceed max_tokens")
        return self


class EmbeddingSettings(_Section):
    """The sentence-embedding model. Changing it invalidates the stored examples."""

    model_dir: Path = Field(Path("build/embedder"), description="holds model.onnx, tokenizer.json")
    pad_to_multiple_of: int = Field(
        1, ge=1, description="sequence lengths are padded to this, so that a GPU backend can batch"
    )
    threads: int = Field(1, ge=0, description="ONNX Runtime intra-op threads; 0: all cores")


class RetrievalSettings(_Section):
    """Where examples live and how they are chosen."""

    milvus_uri: str = Field("", description="Milvus address; empty: Milvus Lite by `echolm serve`")
    milvus_token: SecretStr = SecretStr("")
    collection: str = Field("echolm_examples", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")
    index_type: Literal["IVF_FLAT", "HNSW", "FLAT", "AUTOINDEX"] = "IVF_FLAT"
    index_params: dict[str, int] = {"nlist": 256}
    search_params: dict[str, int] = {"nprobe": 16}
    partition_by_tenant: bool = Field(
        False,
        description="of a new collection on a Milvus server: a search looks into the tenant's "
        "partition only, which pays off with many tenants",
    )
    replicas: int = Field(
        1, ge=1, description="of the collection in memory; more need as many Milvus query nodes"
    )
    search_timeout_s: float = Field(2.0, gt=0, description="then the request goes without examples")
    timeout_s: float = Field(
        10.0, gt=0, description="tokenizer to selection, queueing included; then likewise"
    )
    batches_in_flight: int = Field(
        3, ge=1, description="of a router's requests; the others gather into the next batch"
    )
    top_n: int = Field(16, ge=1, le=1024, description="candidates of stage 1")
    max_examples: int = Field(
        2,
        ge=0,
        le=MAX_EXAMPLES,
        description="most examples in one prompt; more tokens, more help",
    )
    min_similarity: float = Field(0.6, ge=-1, le=1, description="cosine under which none is used")
    relative_similarity: float = Field(
        0.85,
        ge=0,
        le=1,
        description="an example of less than this share of the best is dropped",
    )
    utility: Literal["learned", "similarity"] = Field(
        "learned", description="how candidates are scored; similarity: nothing is learnt"
    )
    utility_discount: float = Field(
        0.999, gt=0, le=1, description="per rating; what the utility model keeps of the past"
    )
    leave_one_out: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of requests with several examples that lose one at random, to learn "
        "what it does",
    )
    threshold: float = Field(
        0.5, ge=0, le=1, description="least utility of an example; where an adaptive one starts"
    )
    adaptive_threshold: bool = Field(True, description="whether ratings move the threshold")
    threshold_exploration: float = Field(
        0.05, ge=0, le=1, description="share of requests that try another threshold"
    )
    token_price: float = Field(
        0.02, ge=0, description="quality (0..1) that 1,000 tokens of examples must be worth"
    )
    order: Literal["prefix", "similarity"] = Field(
        "prefix",
        description="prefix: of sets of examples that are nearly as good as the best the one "
        "with which an earlier prompt began, in its order; similarity: the best ones, the most "
        "similar last",
    )
    warm_tolerance: float = Field(
        0.03,
        ge=0,
        le=1,
        description="what a set may give up, times its examples, for a prompt that begins as an "
        "earlier one did; of what maximal marginal relevance counts",
    )
    diversity: float = Field(
        0.3, ge=0, le=1, description="weight of redundancy in maximal marginal relevance"
    )
    max_example_tokens: int = Field(1_024, ge=0, description="token budget of all examples")


class RoutingSettings(_Section):
    """The bandit that chooses the LLM."""

    default_llm: str = Field("", description="answers when routing fails; empty: the strongest LLM")
    cost_weight: float = Field(
        0.05, ge=0, description="quality (0..1) that one unit of relative cost is worth"
    )
    projection_dim: int = Field(16, ge=0, description="dimensions of the embedding's projection")
    similarity_saturation: float = Field(
        0.7, gt=-1, le=1, description="cosine from which an example is taken to fit, a priori"
    )
    prior_ratings: float = Field(
        20.0, gt=0, description="how many ratings the prior qualities are worth"
    )
    exploration: float = Field(
        0.25, ge=0, description="scale of the posterior's width when an LLM is drawn; 1: Thompson"
    )
    noise: float = Field(0.15, gt=0, description="standard deviation of a rating")
    discount: float = Field(0.999, gt=0, le=1, description="per rating; forgets what drifted")
    exploration_floor: float = Field(0.01, ge=0, lt=1, description="least probability of an arm")
    solicit_share: float = Field(
        0.05, ge=0, le=1, description="share of answers a rating is asked for: the most valuable"
    )
    load_table: str = Field(
        "",
        description="shared-memory file of all routers' load, on a local disk; empty: in data_dir; "
        "the retrievers' file of their prompts lies beside it",
    )
    load_half_life_s: float = Field(1.0, gt=0, description="of the moving average of the load")
    load_threshold: float = Field(
        1.0, ge=0, description="load without bias; 1: the capacity of a pool of LLMs"
    )
    load_bias: float = Field(
        0.3, ge=0, description="lambda_0: most quality (0..1) that a request gives up under load"
    )
    load_gain: float = Field(1.0, ge=0, description="gamma: how fast the bias grows with load")


class FeedbackSettings(_Section):
    """Ratings and their tokens."""

    signing_key: SecretStr = Field(
        SecretStr(""), description="shared by all replicas; empty: made at first start, in data_dir"
    )
    token_ttl_s: int = Field(86_400, gt=0, description="how long an answer can be rated")


class LearningSettings(_Section):
    """How processes follow the learning log."""

    snapshot_every: int = Field(
        5_000,
        ge=0,
        description="events between snapshots, which shorten the start; 0: none, and nothing is "
        "removed from the log",
    )
    retention_days: float = Field(
        90.0,
        ge=0,
        description="then events are removed from the log, once snapshots stand for them: a "
        "changed model learns from what is left, scripts/estimate_policy.py likewise; 0: never",
    )
    redis_prefix: str = Field(
        "echolm", pattern=r"^[A-Za-z0-9_.:{}-]{1,64}$", description="begins every key in Redis"
    )
    redis_timeout_s: float = Field(5.0, gt=0, description="to connect, and for one command")
    redis_min_replicas: int = Field(
        0, ge=0, description="replicas that must have a rating before it is acknowledged"
    )


class JudgingSettings(_Section):
    """Automatic feedback on a sampled share of the answers. Off unless a kind is chosen."""

    kind: Literal["none", "similarity", "llm", "grader"] = Field(
        "none",
        description="similarity: of embeddings, to the reference LLM's answer; llm: an LLM "
        "compares both answers; grader: a function of your own",
    )
    sample_share: float = Field(0.01, ge=0, le=1, description="share of answers that are judged")
    solicited_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="part of them kept for answers for which a rating is asked, too; the rest is "
        "drawn at random from all",
    )
    max_load: int = Field(
        16, ge=0, description="requests in flight to all LLMs above which nothing is judged"
    )
    max_concurrent: int = Field(2, ge=1, description="judgements at a time in a router process")
    timeout_s: float = Field(120.0, gt=0, description="a judgement that takes longer is dropped")
    exclude_tenants: tuple[str, ...] = Field(
        (), description="tenants whose answers are never judged"
    )
    reference_llm: str = Field(
        "", description="whose answers others are held against; empty: the strongest LLM"
    )
    similarity_floor: float = Field(
        0.75, ge=-1, lt=1, description="similarity: cosine of answers that is worth nothing"
    )
    judge_llm: str = Field("", description="llm: which one judges; empty: the strongest LLM")
    prompt: Path | None = Field(
        None,
        description="llm: file with {request}, {answer_a} and {answer_b} that asks for [[A]], "
        "[[B]] or [[C]] (a tie); none: a built-in one",
    )
    max_judgement_tokens: int = Field(16, ge=1, description="llm: longest reply of the judge")
    grader: str = Field(
        "",
        pattern=r"^$|^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*$",
        description="grader: module:function or path/to/file.py:function that is called with "
        "(request, answer, reference) and returns a quality in 0..1",
    )

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> JudgingSettings:
        if self.kind == "grader" and not self.grader:
            raise ValueError("judging.grader: expected module:function for kind 'grader', got none")
        return self


class ExamplesSettings(_Section):
    """Which interactions become examples."""

    enabled: bool = True
    from_llms: tuple[str, ...] = Field((), description="empty: the strongest LLM only")
    min_response_chars: int = Field(1, ge=1)
    max_interaction_chars: int = Field(16_384, gt=0)
    min_quality: float = Field(0.0, ge=0, le=1, description="least expected quality of an answer")
    secrets: Literal["refuse", "keep"] = Field(
        "refuse", description="what becomes of an interaction with a key, token or password in it"
    )
    injections: Literal["refuse", "keep"] = Field(
        "refuse", description="likewise, with instructions to ignore instructions"
    )
    personal_data: Literal["keep", "redact", "refuse"] = Field(
        "keep", description="redact: stored without it; both need the extra `privacy`"
    )
    personal_entities: tuple[str, ...] = Field(
        ("CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "PHONE_NUMBER", "US_SSN"),
        description="what counts as personal data, by Presidio's names",
    )
    batch_size: int = Field(64, ge=1, description="interactions written to Milvus at a time")
    flush_interval_s: float = Field(0.5, gt=0)
    max_pending: int = Field(
        10_000,
        ge=1,
        description="interactions in the write_ahead_log; then new ones are dropped, counted",
    )
    deduplicate: bool = Field(
        True, description="a request that is stored already adds an example only if better answered"
    )
    max_examples: int = Field(
        1_000_000, ge=1, description="in the store; those that help least per byte make room"
    )
    max_bytes: int = Field(2**30, ge=1, description="likewise, of requests and responses together")
    low_watermark: float = Field(
        0.95, gt=0, le=1, description="share of the limits down to which room is made"
    )
    value_decay: float = Field(
        0.9, gt=0, lt=1, description="what an example's past offloads are worth after an hour"
    )
    ttl_s: float = Field(0.0, ge=0, description="then an example is removed; 0: never")
    maintenance_interval_s: float = Field(
        5.0, gt=0, description="between looks at limits and expiry"
    )


class ReplaySettings(_Section):
    """Improving examples, by ``echolm replay`` or while the LLMs are idle."""

    off_peak: bool = Field(
        False, description="whether the server replays while the LLMs are idle; needs judging.kind"
    )
    candidates: int = Field(4, ge=1, description="answers generated for an example at a time")
    temperature: float = Field(0.8, gt=0, description="at which they are sampled")
    margin: float = Field(
        0.05, ge=0, le=1, description="by which the judge must find an answer better"
    )
    max_replays: int = Field(5, ge=1, description="of an example; more bring nothing (paper, §4.3)")
    min_gain: float = Field(
        0.005, ge=0, description="least G(e) that is worth a replay, summed over an example's uses"
    )
    patience: int = Field(
        50, ge=1, description="replays without an improvement after which it ends"
    )
    max_load: int = Field(
        0, ge=0, description="requests in flight to all LLMs above which off-peak replay stops"
    )
    pause_s: float = Field(
        10.0, gt=0, description="off-peak: idle time before a replay, and between two rounds"
    )


_REVISED_PRIOR_RATINGS = 3.0


class LLMSettings(_Section):
    """One LLM behind the router: an arm of the bandit."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    triton_model: str = Field("", description="Triton model name; empty: the same as name")
    url: str = Field("", description="gRPC address of its Triton; empty: this server")
    contract: Literal["llmapi", "inflight_batcher"] = Field(
        "llmapi",
        description="of its Triton model: llmapi (ours, and NVIDIA's model of that name), or "
        "inflight_batcher (the ensemble of TensorRT-LLM's C++ backend)",
    )
    cost: float = Field(gt=0, description="relative cost of one answer; only ratios matter")
    takes_examples: bool
    prior_quality: float = Field(
        0.5, ge=0, le=1, description="expected quality before any rating (with fitting examples)"
    )
    prior_ratings: float | None = Field(
        None,
        gt=0,
        description="how many ratings prior_quality is worth; none: routing.prior_ratings, or "
        f"{_REVISED_PRIOR_RATINGS:.0f} if the LLM has a revision",
    )
    revision: str = Field(
        "",
        max_length=128,
        description="any text that names the LLM's version; what is learnt under another one is "
        "left aside, so change it with the LLM and it is learnt anew",
    )
    capacity: float = Field(
        48.0, gt=0, description="requests in flight from which it counts as full"
    )
    pool: str = Field("", description="LLMs of one pool share hardware and slow each other down")
    context_length: int = Field(2_048, gt=0)
    prompt_template: str = "echolm"
    tokenizer: Path | None = Field(
        None, description="tokenizer.json for exact token counts; none: estimated from characters"
    )

    @property
    def model(self) -> str:
        """Name of the Triton model."""
        return self.triton_model or self.name

    def prior_weight(self, default: float) -> float:
        """How many ratings ``prior_quality`` is worth.

        Args:
            default: ``routing.prior_ratings``. Of an LLM that replaced another, the prior
                quality was seldom measured, so it is worth little.
        """
        if self.prior_ratings is not None:
            return self.prior_ratings
        return min(default, _REVISED_PRIOR_RATINGS) if self.revision else default


_DEFAULT_LLMS = (
    LLMSettings(name="small_llm", cost=0.1, takes_examples=True, prior_quality=0.97),
    # Two cores are full of half a dozen large requests: more only wait longer.
    LLMSettings(name="large_llm", cost=1.0, takes_examples=False, prior_quality=0.98, capacity=6.0),
)


class Settings(BaseSettings):
    """All of ``echolm.toml``."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    grpc_url: str = Field(
        "localhost:8001", description="this server's own gRPC address, for the router's calls"
    )
    data_dir: Path = Field(Path("build/data"), description="everything EchoLM writes")
    event_log: str = Field(
        "",
        description="the learning log: a SQLite file, or redis:// or rediss://[user:password@]"
        "host[:port][/database] for many machines; empty: a SQLite file in data_dir",
    )
    limits: Limits = Limits()
    embedding: EmbeddingSettings = EmbeddingSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    routing: RoutingSettings = RoutingSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    learning: LearningSettings = LearningSettings()
    judging: JudgingSettings = JudgingSettings()
    examples: ExamplesSettings = ExamplesSettings()
    replay: ReplaySettings = ReplaySettings()
    llms: tuple[LLMSettings, ...] = Field(_DEFAULT_LLMS, min_length=1)

    @field_validator("event_log")
    @classmethod
    def _usable_log(cls, value: str) -> str:
        if "://" not in value:
            return value
        try:
            url = urlsplit(value)
            usable = url.scheme in _REDIS_SCHEMES and url.hostname and url.port != 0
        except ValueError:  # the port is no number
            usable = False
        if not usable or not re.fullmatch(r"/?|/[0-9]+", url.path):
            raise ValueError(
                "expected a file, or redis://host[:port][/database number], or rediss:// for TLS"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        names = [llm.name for llm in self.llms]
        if len(set(names)) != len(names):
            raise ValueError(f"llms: names must be unique, got {names}")
        if "auto" in names:
            raise ValueError("llms: 'auto' is reserved for the router's choice")
        longest = max(llm.context_length for llm in self.llms)
        if self.limits.default_max_tokens >= longest:
            raise ValueError(
                f"limits.default_max_tokens: expected less than the longest context, {longest}, "
                f"got {self.limits.default_max_tokens}"
            )
        if self.routing.similarity_saturation <= self.retrieval.min_similarity:
            raise ValueError("routing.similarity_saturation must exceed retrieval.min_similarity")
        if self.routing.exploration_floor * len(names) > 1:
            raise ValueError("routing.exploration_floor must be at most 1 / number of llms")
        if self.routing.default_llm and self.routing.default_llm not in names:
            raise ValueError(
                f"routing.default_llm: expected one of {names}, got {self.routing.default_llm!r}"
            )
        for key in ("reference_llm", "judge_llm"):
            name = getattr(self.judging, key)
            if name and name not in names:
                raise ValueError(f"judging.{key}: expected one of {names}, got {name!r}")
        if self.judging.kind != "none" and len(names) < 2:
            raise ValueError(
                f"judging.kind: expected 'none' with a single LLM, got {self.judging.kind!r}: "
                "there is none to compare it with"
            )
        if self.replay.off_peak and self.judging.kind == "none":
            raise ValueError(
                "replay.off_peak: expected a judge in judging.kind, got 'none': nothing else says "
                "which answer is better"
            )
        unknown = set(self.examples.from_llms) - set(names)
        if unknown:
            raise ValueError(f"examples.from_llms: expected names among {names}, got {unknown}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment overrides the file, which arrives as init arguments.
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = with_values_of_files(env_settings.env_vars)
        return env_settings, init_settings

    @property
    def default_llm(self) -> LLMSettings:
        """The LLM that answers when routing fails: the configured one, else the strongest."""
        if self.routing.default_llm:
            return self.llm(self.routing.default_llm)
        return self.strongest_llm

    @property
    def strongest_llm(self) -> LLMSettings:
        """The LLM of the highest cost, which is taken to be the best."""
        return max(self.llms, key=lambda llm: llm.cost)

    @property
    def example_sources(self) -> frozenset[str]:
        """Names of the LLMs whose answers may become examples."""
        return frozenset(self.examples.from_llms or (self.strongest_llm.name,))

    @property
    def event_log_path(self) -> Path | None:
        """File of the learning log; None if ``event_log`` is the URL of a Redis server."""
        if "://" in self.event_log:
            return None
        return Path(self.event_log) if self.event_log else self.data_dir / "events.sqlite"

    @property
    def relative_costs(self) -> dict[str, float]:
        """Cost of each LLM, the strongest 1."""
        strongest = self.strongest_llm.cost
        return {llm.name: llm.cost / strongest for llm in self.llms}

    @property
    def write_ahead_log_path(self) -> Path:
        """File of admitted interactions that the store does not have yet."""
        return self.data_dir / "examples.write_ahead_log.sqlite"

    @property
    def statistics_path(self) -> Path:
        """File of what each stored example is worth."""
        return self.data_dir / "examples.statistics.sqlite"

    @property
    def load_table_path(self) -> Path:
        """Shared-memory file of all routers' load."""
        given = self.routing.load_table
        return Path(given) if given else self.data_dir / "load.table"

    @property
    def prefix_index_path(self) -> Path:
        """File by which retrievers tell each other of their prompts, beside the load board."""
        board = self.load_table_path
        return board.with_name(f"{board.name}.prompts")

    def llm(self, name: str) -> LLMSettings:
        """The LLM of that name; KeyError if it is not configured."""
        for llm in self.llms:
            if llm.name == name:
                return llm
        raise KeyError(name)
