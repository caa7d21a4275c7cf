"""The sections of ``echolm.toml``: each key with its default, its limits and its meaning.

The descriptions are the users' reference (``python_backends/SETTINGS.md`` is generated from them),
so each is a statement that can be read by itself, with the unit of its value.
"""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    field_validator,
    model_validator,
)

from echolm.contracts import MAX_EXAMPLES

BUILT_IN_CHAT_TEMPLATES = ("echolm", "chatml", "plain")
"""Values of ``llms.chat_template`` that are no path."""


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            "expected a home directory for ~, got none; set HOME, or both ECHOLM_DATA_DIR and "
            "ECHOLM_EMBEDDING__MODEL_DIR"
        ) from None


HomePath = Annotated[Path, AfterValidator(_at_home)]
"""A path in which ``~`` is the user's home."""


class Section(BaseModel):
    """A section of the file: it cannot be changed, and refuses keys that it does not have."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


class Limits(Section):
    """What a single request may ask for."""

    max_input_chars: int = Field(32_768, gt=0)
    """Longest text_input, or last message, of a request, in characters."""
    max_conversation_chars: int = Field(131_072, gt=0)
    """Longest conversation, in characters of all its messages together."""
    max_tokens: int = Field(4_096, gt=0)
    """Largest max_tokens that a request may ask for."""
    default_max_tokens: int = Field(128, gt=0)
    """Longest answer, in tokens, where a request gives no max_tokens."""
    max_stop_words: int = Field(16, ge=0)
    """Largest number of stop words in one request, and of bad words, and of biased words."""
    max_in_flight: int = Field(2_048, gt=0)
    """Requests that each of the models `echolm` and `echolm_stream` answers at a time, each row of
    a batch counted; more are refused as UNAVAILABLE."""
    request_timeout_s: float = Field(120.0, gt=0)
    """Seconds after which an LLM that has not answered counts as failed and another is asked."""
    stream_interval_ms: float = Field(40.0, ge=0, le=1_000)
    """Milliseconds in which the pieces of a streamed answer gather for one response, which costs
    less than a response each and delays text by at most about as long; 40 are 25 responses a
    second, which read as a steady flow. The first piece, the end, and pieces that are further apart
    never wait. 0 sends every piece by itself."""

    @model_validator(mode="after")
    def _default_within_limit(self) -> Limits:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("default_max_tokens must not exceed max_tokens")
        return self


class EmbeddingSettings(Section):
    """The sentence-embedding model. Stored examples are of no use to another model."""

    model_dir: HomePath = Path("~/.cache/echolm/embedder")
    """Directory with the model's model.onnx, tokenizer.json and embedder.json; where there is none,
    `echolm serve` writes the default model there."""
    pad_to_multiple_of: int = Field(1, ge=1)
    """Token sequences are padded to a multiple of this length, so that a GPU backend, which batches
    equal shapes only, meets few different ones."""
    threads: int = Field(1, ge=0)
    """Threads of ONNX Runtime for one call; 0 takes all cores, at most 4."""


class RetrievalSettings(Section):
    """Where examples are stored, and how those for a prompt are chosen."""

    milvus_uri: str = ""
    """Address of the Milvus server; where it is empty, `echolm serve` starts Milvus Lite."""
    milvus_token: SecretStr = SecretStr("")
    """Token, or user:password, for the Milvus server."""
    collection: str = Field("echolm_examples", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")
    """Name of the Milvus collection that holds the examples."""
    index_type: Literal["IVF_FLAT", "HNSW", "FLAT", "AUTOINDEX"] = "IVF_FLAT"
    """Vector index of a new collection; Milvus Lite has no HNSW."""
    index_params: dict[str, int] = {"nlist": 256}
    """Parameters with which a Milvus server builds the index of a new collection; Milvus Lite has
    its own."""
    search_params: dict[str, int] = {"nprobe": 16}
    """Parameters of the index for each search in a Milvus server; Milvus Lite ignores them."""
    partition_by_tenant: bool = False
    """Whether a new collection on a Milvus server keeps each tenant's examples together, so that a
    search reads only its tenant's; this pays off with many tenants."""
    milvus_replicas: int = Field(1, ge=1)
    """Copies of the collection that Milvus keeps in memory; several need as many query nodes."""
    search_timeout_s: float = Field(2.0, gt=0)
    """Seconds after which a search is given up, and the request goes on without examples."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds for everything from tokenizer to selection, queueing included, after which the
    request goes on without examples."""
    batches_in_flight: int = Field(3, ge=1)
    """Batches of requests that a front door has in selection at a time; further requests gather for
    the next batch."""
    top_n: int = Field(16, ge=1, le=1024)
    """Nearest examples that Milvus returns for a request."""
    num_examples: int = Field(3, ge=0, le=MAX_EXAMPLES)
    """Number of examples in a prompt, fewer where fewer are found or fit; an adaptive number starts
    here, and departs from it for the requests for which ratings show another one to be better."""
    max_examples: int = Field(5, ge=0, le=MAX_EXAMPLES)
    """Largest number of examples in one prompt; each costs tokens."""
    adaptive_num_examples: bool = True
    """Whether ratings move the number of examples to what is worth most for a request, from none to
    `max_examples`."""
    num_examples_exploration: float = Field(0.15, ge=0, le=1)
    """Share of requests whose number of examples is drawn by how probably it is the best one, which
    often gives the usual one, to learn whether another is better; none is drawn before the first
    rating."""
    min_similarity: float | None = Field(None, ge=-1, le=1)
    """Cosine similarity to the request below which an example is not used; without it the
    similarity that unrelated requests reach, which is measured."""
    utility: Literal["learned", "similarity"] = "learned"
    """How candidates are scored: `learned` estimates from feedback how probably an example helps,
    `similarity` takes the cosine similarity, relative to other requests', and learns nothing."""
    utility_half_life_h: float = Field(336.0, gt=0)
    """Hours in which what feedback has taught of utilities and of the number of examples loses half
    of its weight; that of some hundred ratings is kept however old they are."""
    leave_one_out: float = Field(0.05, ge=0, le=1)
    """Share of the requests with several examples in which one of them is dropped at random, to
    learn what it contributes."""
    token_price: float = Field(0.02, ge=0)
    """Quality (0 to 1) that 1,000 tokens of examples must gain to be worth their cost."""
    order: Literal["prefix", "similarity"] = "prefix"
    """Order of the examples in a prompt: `prefix` begins as an earlier prompt did where examples
    nearly as good allow it, so that the LLM's prefix cache is used; `similarity` puts the most
    similar example last."""
    warm_tolerance: float = Field(0.03, ge=0, le=1)
    """Utility, for each example, that a set of examples may lack of the best set's and still be
    taken because an earlier prompt began with it."""
    max_example_tokens: int = Field(1_024, ge=0)
    """Largest number of tokens that all examples of a prompt may have."""


class RoutingSettings(Section):
    """The contextual bandit that chooses the LLM."""

    default_llm: str = ""
    """Name of the LLM that answers when routing fails; empty means the strongest."""
    cost_weight: float = Field(0.05, ge=0)
    """Quality (0 to 1) that the cost of an answer of the strongest LLM is worth."""
    prior_ratings: float = Field(3.0, gt=0, le=100)
    """Ratings that an LLM's prior quality is worth, unless the LLM has a number of its own."""
    exploration: float = Field(0.25, ge=0)
    """Factor on the uncertainty of an LLM's quality when an LLM is drawn; 1 is Thompson sampling, 0
    always takes the best estimate."""
    half_life_h: float = Field(336.0, gt=0)
    """Hours in which what ratings have taught loses half of its weight, so that an LLM or requests
    that change are learnt anew."""
    least_ratings: float = Field(200.0, ge=20)
    """Number of ratings whose weight the bandit keeps for an LLM, however old they are."""
    exploration_floor: float = Field(0.003, ge=0, lt=1)
    """Least probability with which an LLM is drawn; it is less for one whose cost takes off much of
    the quality that there is to win."""
    solicit_share: float = Field(0.05, ge=0, le=1)
    """Share of answers whose rating is asked for."""
    solicit_random: float = Field(0.5, ge=0, le=1)
    """Part of the ratings asked for that is drawn at random, from which `echolm estimate` can tell
    what other policies would score; the others are those that would improve routing most."""
    warm_up_ratings: int = Field(60, ge=0)
    """Ratings and comparisons, with and without examples each, until which an LLM gets no requests
    of that kind: the strongest LLM answers, and the others are asked beside it and judged. 0 turns
    that off, as does a configuration without a judge."""
    reuse_error: float = Field(0.01, ge=0, le=0.5)
    """Largest share of answers given from the store that may be wrong: a stored answer of the
    strongest LLM is given as it is where past comparisons bound the error by this; 0 gives none."""
    prefix_price: float = Field(0.02, ge=0)
    """Quality (0 to 1) that another LLM must be better by, for every 1,000 tokens of a conversation
    that the LLM which has answered so far need not read anew; 0 lets conversations move freely."""
    load_table: str = ""
    """File on a local disk in which all routers of a machine share their load, or a folder, such as
    /dev/shm, in which `echolm serve` makes one with a name that nobody can guess; the retrievers'
    shared prefix index lies beside it. Empty means a file in data_dir."""
    load_half_life_s: float = Field(1.0, gt=0)
    """Half-life, in seconds, of the moving average of the load."""
    load_threshold: float = Field(1.0, ge=0)
    """Load above which LLMs lose score; 1 is the capacity of a pool of LLMs."""
    load_bias: float = Field(0.1, ge=0)
    """Most quality (0 to 1) that a request gives up under load: lambda_0 of the paper."""
    load_gain: float = Field(0.1, ge=0)
    """How fast the bias grows with load: gamma of the paper. By default a queue at the large LLM as
    long as what it serves at once costs a tenth of the largest bias, ten such queues three
    quarters."""


class FeedbackSettings(Section):
    """Ratings, and the tokens that answers carry for them."""

    signing_key: SecretStr = SecretStr("")
    """Key that signs feedback tokens, and the calls of EchoLM's models to each other, the same in
    all replicas and in other Tritons that serve EchoLM's LLM model; where it is empty, the first
    start makes one in data_dir."""
    token_ttl_s: int = Field(86_400, gt=0)
    """Seconds for which an answer can be rated."""

    @field_validator("signing_key")
    @classmethod
    def _stripped(cls, key: SecretStr) -> SecretStr:
        """As the front door has it: without white space of ASCII around it."""
        return SecretStr(key.get_secret_value().strip(string.whitespace))


class LearningSettings(Section):
    """How processes follow the learning log, and how long its events are kept."""

    snapshot_every: int = Field(5_000, ge=0)
    """Events between two snapshots of what was learnt, which shorten the start; 0 makes none, and
    then no event is removed from the log."""
    retention_days: float = Field(90.0, ge=0)
    """Days after which events are removed from the log, once snapshots contain them; a changed
    model and `echolm estimate` see only what is left. 0 keeps all."""
    redis_prefix: str = Field("echolm", pattern=r"^[A-Za-z0-9_.:{}-]{1,64}$")
    """Text with which every key in Redis begins."""
    redis_timeout_s: float = Field(5.0, gt=0)
    """Seconds for a connection to Redis, and for each command."""
    redis_min_replicas: int = Field(0, ge=0)
    """Redis replicas that must have a rating before it is acknowledged."""


class JudgingSettings(Section):
    """Automatic feedback: a sampled share of the answers is judged, and each of a new LLM's."""

    kind: Literal["none", "similarity", "llm", "grader"] = "llm"
    """What judges answers: `llm` an LLM that compares two answers; `similarity` the embeddings'
    similarity to the reference LLM's answer; `grader` a Python function of yours; `none` nothing.
    With a single LLM, or with an LLM that cannot judge (llms.can_judge), nothing is judged."""
    sample_share: float = Field(0.01, ge=0, le=1)
    """Share of answers that are judged."""
    solicited_share: float = Field(0.5, ge=0, le=1)
    """Part of the judgements kept for answers for which a rating is asked for as well; the others
    are of answers drawn at random."""
    max_in_flight_llm_requests: int | None = Field(None, ge=0)
    """Requests in flight to all LLMs above which nothing is judged; without it, as many as all LLMs
    serve at once (llms.capacity)."""
    max_concurrent: int = Field(16, ge=1)
    """Judgements that one router process makes at a time; further ones are skipped."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds after which a judgement is dropped."""
    exclude_tenants: tuple[str, ...] = ()
    """Tenants whose answers are never judged."""
    reference_llm: str = ""
    """Name of the LLM with whose answers the others' are compared, and which answers while nothing
    is known of the others; empty means the strongest."""
    similarity_floor: float = Field(0.75, ge=-1, lt=1)
    """Cosine similarity of two answers that the judge `similarity` rates 0; it rates a similarity
    of 1 as 1."""
    judge_llm: str = ""
    """Name of the LLM with which the judge `llm` compares answers; empty means the strongest."""
    prompt: Path | None = None
    """File with the prompt of the judge `llm`, in which {request}, {answer_a} and {answer_b} stand
    and which asks for [[A]], [[B]] or [[C]] (a tie); without it a built-in prompt is used."""
    max_judgement_tokens: int = Field(16, ge=1)
    """Longest reply of the judge `llm`, in tokens."""
    grader: str = Field("", pattern=r"^$|^([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*$")
    """Function of the judge `grader`, as module:function or path/to/file.py:function; it takes
    request, answer and reference answer and returns a score from 0 to 1."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> JudgingSettings:
        if self.kind == "grader" and not self.grader:
            raise ValueError(
                "judging.grader: expected module:function or file.py:function for kind 'grader', "
                "got none"
            )
        return self


class ExamplesSettings(Section):
    """Which interactions become examples, and how many are kept."""

    enabled: bool = True
    """Whether interactions become examples at all."""
    format: Literal["turns", "block"] = "turns"
    """How examples stand in a prompt: `turns` as earlier turns of the conversation, `block` as a
    block of text in front of the request."""
    from_llms: tuple[str, ...] = ()
    """Names of the LLMs whose answers may become examples; empty means only the strongest."""
    min_response_chars: int = Field(1, ge=1)
    """Shortest answer that may become an example, in characters."""
    max_interaction_chars: int = Field(16_384, gt=0)
    """Longest request and answer together that may become an example, in characters."""
    min_quality: float = Field(0.0, ge=0, le=1)
    """Least quality, as the bandit expects it, of an answer that may become an example."""
    secrets: Literal["refuse", "keep"] = "refuse"
    """Whether an interaction with a key, token or password is refused as an example or kept."""
    injections: Literal["refuse", "keep"] = "refuse"
    """Whether an interaction that contains instructions to ignore instructions is refused as an
    example or kept."""
    personal_data: Literal["keep", "redact", "refuse"] = "keep"
    """Whether personal data is kept in examples, redacted, or makes an interaction be refused;
    `redact` and `refuse` need the extra `privacy`."""
    personal_entities: tuple[str, ...] = (
        "CREDIT_CARD",
        "EMAIL_ADDRESS",
        "IBAN_CODE",
        "PHONE_NUMBER",
        "US_SSN",
    )
    """What counts as personal data, by the names of Presidio's entities."""
    batch_size: int = Field(64, ge=1)
    """Largest number of examples written to Milvus at a time."""
    flush_interval_s: float = Field(0.5, gt=0)
    """Longest time, in seconds, for which a batch of examples fills up."""
    max_pending: int = Field(10_000, ge=1)
    """Largest number of interactions that wait in the write-ahead log; while it is full, new ones
    are dropped and counted."""
    deduplicate: bool = True
    """Whether a request that is stored already becomes an example again only with a better answer,
    in place of the first."""
    max_stored: int = Field(1_000_000, ge=1)
    """Most examples in the store; above it those that help least per byte are evicted."""
    max_stored_bytes: int = Field(2**30, ge=1)
    """Largest size of all stored requests and answers together, in bytes of UTF-8; above it those
    that help least per byte are evicted."""
    low_watermark: float = Field(0.95, gt=0, le=1)
    """Share of max_stored and max_stored_bytes down to which eviction goes."""
    value_decay: float = Field(0.9, gt=0, lt=1)
    """Share of its value that the record of an example's past offloads keeps after an hour."""
    ttl_s: float = Field(0.0, ge=0)
    """Seconds after which an example is removed; 0 keeps it."""
    maintenance_interval_s: float = Field(5.0, gt=0)
    """Seconds between two checks of the store's limits and expiry times."""


class ReplaySettings(Section):
    """Improving examples, by command or while the LLMs are idle."""

    off_peak: bool = False
    """Whether the server replays examples while the LLMs are idle; it needs a judge in
    judging.kind."""
    candidates: int = Field(4, ge=1)
    """Answers that are generated for one example at a time."""
    temperature: float = Field(0.8, gt=0)
    """Sampling temperature of the generated answers."""
    margin: float = Field(0.05, ge=0, le=1)
    """Score (0 to 1) by which the judge must find a new answer better than the stored one."""
    max_replays: int = Field(5, ge=1)
    """Largest number of replays of one example (paper, §4.3)."""
    min_gain: float = Field(0.005, ge=0)
    """Least expected gain of an example, G(e) of the paper summed over its uses, that is worth a
    replay."""
    patience: int = Field(50, ge=1)
    """Replays in a row without an improvement after which replay ends."""
    max_in_flight_llm_requests: int = Field(0, ge=0)
    """Requests in flight to all LLMs above which off-peak replay stops."""
    pause_s: float = Field(10.0, gt=0)
    """Seconds that the LLMs must be idle before off-peak replay begins, and between two rounds."""


class TritonSettings(Section):
    """Triton's own ports, HTTP and gRPC."""

    direct_llm_calls: bool = False
    """Whether whoever reaches Triton's ports may call the LLM models themselves, past the router,
    as to measure or to debug one."""
    restrict: bool = True
    """Whether `echolm serve` restricts Triton's protocols other than inference, health and metadata
    to those who send the admin key: shared memory, model repository, model configuration,
    statistics, trace and logging."""
    admin_key: SecretStr = SecretStr("")
    """Key for the restricted protocols, which callers send as the header echolm-admin-key (HTTP) or
    triton-grpc-protocol-echolm-admin-key (gRPC); where it is empty, the first start makes one in
    data_dir."""

    @model_validator(mode="after")
    def _key_fits_a_header(self) -> TritonSettings:
        key = self.admin_key.get_secret_value()
        if key and not re.fullmatch(r"[A-Za-z0-9_.+/-]{16,256}", key):
            raise ValueError(
                "admin_key: expected 16 to 256 letters, digits or any of _.+/-, got another text"
            )
        return self


class GatewaySettings(Section):
    """The OpenAI-compatible HTTP server that `echolm serve` starts in front of Triton."""

    enabled: bool = True
    """Whether `echolm serve` starts it."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; on another one than the loopback, callers need a key."""
    port: int = Field(9_000, ge=0, le=65_535)
    """TCP port to listen on; 0 takes a free one."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that serve; one takes some hundred requests a second."""
    open: bool = False
    """Whether callers need no key on whatever address, as long as there is no key and none is
    required."""
    keys_path: Path | None = None
    """File of the API keys, which `echolm keys` writes; without it keys.json in data_dir."""
    require_keys: bool | None = None
    """Whether the file of the API keys must be there, and callers need a key on whatever address;
    without it they do where keys_path is given."""
    tls_certificate: Path | None = None
    """PEM file with the server's certificate and those that lead to its root; with it the gateway
    speaks HTTPS only."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""
    max_body_bytes: int = Field(2_097_152, ge=1_024)
    """Largest body of a request, in bytes."""
    max_header_bytes: int = Field(32_768, ge=1_024)
    """Largest head of a request (address and headers), in bytes."""
    max_json_depth: int = Field(64, ge=8, le=200)
    """Most levels of arrays and objects in a body."""
    max_json_elements: int = Field(20_000, ge=100)
    """Most values in a body, those in arrays and objects included."""
    max_connections: int = Field(1_024, ge=1)
    """Most open connections of a worker; further ones are refused."""
    cost_weights: tuple[float, ...] = (0.0, 0.2, 1.0)
    """Cost weights n of which /v1/models shows the models echolm-n; any other n can be asked for as
    well. It takes the place of routing.cost_weight for the request."""
    max_choices: int = Field(32, ge=1, le=128)
    """Most answers to one request: its prompts times n."""
    header_timeout_s: float = Field(10.0, gt=0)
    """Seconds in which the head of a request must be there."""
    body_timeout_s: float = Field(30.0, gt=0)
    """Seconds in which the body of a request must be there."""
    write_timeout_s: float = Field(60.0, gt=0)
    """Seconds for which a client may leave an answer unread before its connection is cut."""
    keep_alive_s: float = Field(75.0, gt=0)
    """Seconds after which an idle connection is closed."""
    remembered_responses: int = Field(100_000, ge=0)
    """Newest responses that can be rated by their id, on this machine; by its feedback token every
    answer can."""

    @model_validator(mode="after")
    def _certificate_with_key(self) -> GatewaySettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: expected both or none, got one")
        return self

    @field_validator("cost_weights")
    @classmethod
    def _can_be_named(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if not all(weight == 0 or 0.0001 <= weight <= 999 for weight in weights):
            raise ValueError(f"expected 0 or numbers from 0.0001 to 999, got {list(weights)}")
        return weights


class LLMSettings(Section):
    """One LLM behind the router, which is an arm of the bandit."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """Name by which requests, metrics and the learning log know the LLM."""
    triton_model: str = ""
    """Name of the Triton model that serves it; empty means the same as `name`."""
    url: str = ""
    """Address of the server that has it: of another Triton's gRPC port, host:port or
    grpcs://host:port for TLS; of an OpenAI-compatible server http(s)://host:port/v1, up to where
    /chat/completions begins. Empty means this server."""
    contract: Literal["llmapi", "inflight_batcher", "openai"] = "llmapi"
    """What its server speaks. Tensors of a Triton model: `llmapi` those of EchoLM's own and of
    NVIDIA's model of that name, `inflight_batcher` those of the ensemble of TensorRT-LLM's C++
    backend. `openai`: OpenAI's API over HTTP (vLLM, SGLang, trtllm-serve, NIM, hosted LLMs)."""
    remote_model: str = ""
    """Name of the LLM at its server of contract `openai`; empty means the same as `name`."""
    openai_api: Literal["chat", "completions"] = "chat"
    """What is called under contract `openai`: `chat` sends messages, to which the server applies
    its own chat template; `completions` sends the prompt that chat_template makes."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which a server of contract `openai` takes the longest answer; newer LLMs of OpenAI
    itself want max_completion_tokens."""
    takes_top_k: bool = True
    """Whether a server of contract `openai` takes top_k, which OpenAI's own refuses; where it does
    not, other LLMs answer requests with a top_k."""
    takes_tools: bool = True
    """Whether a server of contract `openai` takes tools (with openai_api `chat`); vLLM does with
    --enable-auto-tool-choice and --tool-call-parser."""
    takes_response_format: bool = True
    """Whether a server of contract `openai` takes response_format, JSON of a schema included (with
    openai_api `chat`)."""
    takes_logprobs: bool = True
    """Whether a server of contract `openai` gives log probabilities of tokens."""
    extra_body: dict[str, Any] = {}
    """Fields that each request to a server of contract `openai` has besides, in place of EchoLM's
    value where both have one, such as {chat_template_kwargs = {enable_thinking = false}}."""
    api_key: SecretStr = SecretStr("")
    """Key that the server at `url` asks for: of contract `openai` a bearer token, of another
    EchoLM's Triton its triton.admin_key."""
    api_key_file: Path | None = None
    """File with that key, read at the start, in place of api_key."""
    tls_ca: Path | None = None
    """PEM file of the authorities that may certify the server at `url`; without it those that the
    system trusts."""
    tls_certificate: Path | None = None
    """PEM file of the certificate that EchoLM shows to the server at `url`, with its chain."""
    tls_key: Path | None = None
    """PEM file of that certificate's private key, without a passphrase."""
    connect_timeout_s: float = Field(5.0, gt=0)
    """Seconds for a connection to a server of contract `openai`; the answer has
    limits.request_timeout_s."""
    cost: float = Field(gt=0)
    """Relative cost of one answer; only the ratios between LLMs matter."""
    takes_examples: bool
    """Whether examples are put into the LLM's prompts; yes for the weaker LLMs."""
    can_judge: bool = True
    """Whether the LLM follows the instructions of a judge; no for LLMs of a narrow task."""
    prior_quality: float | None = Field(None, gt=0, lt=1)
    """Quality expected before any rating; without it 0.9 for LLMs of the highest cost, and 0.7 for
    the others."""
    prior_ratings: float | None = Field(None, gt=0, le=100)
    """Number of ratings that prior_quality is worth; without it routing.prior_ratings holds."""
    revision: str = Field("", max_length=128)
    """Any text that names the LLM's version; ratings of other versions are ignored, so change it
    with the LLM and its quality is learnt anew."""
    capacity: float = Field(48.0, gt=0)
    """Requests in flight from which on the LLM counts as full."""
    pool: str = ""
    """Name of the hardware that LLMs share and on which they slow each other."""
    context_length: int = Field(2_048, gt=0)
    """Longest prompt and answer together, in tokens."""
    chat_template: str = ""
    """Chat template of the LLM's prompts: a checkpoint's folder, a .jinja file, or the built-in
    `echolm` (the shipped pair's), `chatml` or `plain` (base models); empty means the template in
    the folder of `tokenizer`. Not used where the server applies its own (contract `openai` with
    openai_api `chat`)."""
    chat_template_args: dict[str, JsonValue] = {}
    """Variables of the chat template, for example enable_thinking = false."""
    stop: tuple[str, ...] = Field((), max_length=16)
    """Texts that end an answer besides those of a request, such as a newline for a base model,
    which does not know where to end."""
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    """Repetition penalty where a request gives none, as the checkpoint recommends it; dropped where
    the LLM's server takes none."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability to sample from where a request gives a temperature and no top_p; as
    the checkpoint recommends it."""
    top_k: int = Field(0, ge=0)
    """Number of likeliest tokens to sample from where a request gives a temperature and no top_k,
    as the checkpoint recommends it; 0 takes all."""
    tokenizer: Path | None = None
    """The checkpoint's folder, or the tokenizer.json in it: tokens are counted exactly, and its
    special tokens escaped in texts; without it tokens are estimated from characters."""

    @model_validator(mode="after")
    def _server_can_be_called(self) -> LLMSettings:
        if not all(self.stop):
            raise ValueError("stop: expected texts that are not empty, got an empty one")
        openai = self.contract == "openai"
        _check_url(self.url, ("http", "https") if openai else ("grpc", "grpcs"))
        if openai:
            if not self.url:
                raise ValueError(
                    "url: expected http(s)://host:port/v1 for contract 'openai', got none"
                )
            if self.triton_model:
                raise ValueError(
                    "triton_model: expected none for contract 'openai'; give it as remote_model"
                )
            if reserved := _RESERVED & self.extra_body.keys():
                raise ValueError(
                    f"extra_body: expected other fields than {', '.join(sorted(_RESERVED))}, got "
                    f"{', '.join(sorted(reserved))}"
                )
        else:
            for name in _OPENAI_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: expected it with contract 'openai' only")
        has_key = bool(self.api_key.get_secret_value())
        if has_key and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file: expected one of them, got both")
        if not self.url and (has_key or self.api_key_file is not None):
            raise ValueError("api_key: expected it with a url only, got none")
        given = [name for name in ("tls_ca", "tls_certificate", "tls_key") if getattr(self, name)]
        if given and not self.url.startswith(("https://", "grpcs://")):
            scheme = "https" if openai else "grpcs"
            raise ValueError(f"{given[0]}: expected a url that begins with {scheme}://")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: expected both or none, got one")
        return self

    @property
    def model(self) -> str:
        """Name of the Triton model."""
        return self.triton_model or self.name

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the other Triton; empty if there is none."""
        return self.url.rpartition("://")[2].rstrip("/")

    @property
    def takes_messages(self) -> bool:
        """Whether its server applies the chat template."""
        return self.contract == "openai" and self.openai_api == "chat"


_OPENAI_ONLY = (
    *("remote_model", "openai_api", "max_tokens_field", "takes_top_k", "extra_body"),
    *("takes_tools", "takes_response_format", "takes_logprobs"),
    "connect_timeout_s",
)
_RESERVED = {"model", "messages", "prompt", "stream", "n"}


def _check_url(url: str, schemes: tuple[str, str]) -> None:
    """ValueError if it is no address of that kind; gRPC's needs no scheme."""
    grpc = "grpc" in schemes
    if not url:
        return
    try:
        parts = urlsplit(url if "://" in url or not grpc else f"grpc://{url}")
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        usable = usable and (not grpc or (bool(parts.port) and parts.path in ("", "/")))
        usable = usable and not (parts.query or parts.fragment)
    except ValueError:  # the port is no number
        usable = False
    if not usable:
        expected = "[grpc[s]://]host:port" if grpc else "http[s]://host[:port][/path]"
        raise ValueError(f"url: expected {expected}, got another form")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: expected no user or password in it; give api_key or api_key_file")
