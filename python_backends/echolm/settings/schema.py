"""The configuration as a whole: all sections, and what must hold between them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from echolm.settings import sections
from echolm.settings.environment import ENV_PREFIX, with_values_of_files
from echolm.settings.sections import LLMSettings

_DEFAULT_LLMS = (  # both know the demo's workload and nothing else
    LLMSettings(
        name="small_llm", cost=0.1, takes_examples=True, can_judge=False, chat_template="echolm"
    ),
    LLMSettings(
        name="large_llm",
        cost=1.0,
        takes_examples=False,
        can_judge=False,
        chat_template="echolm",
        capacity=6.0,  # two cores are busy with half a dozen requests: more only wait longer
    ),
)

_OF_ANOTHER = ("url", "triton_model", "tokenizer")
"""Keys of an LLM that has only its name from a shipped one."""


def _completed(llm: Any) -> Any:
    """A section of ``[[llms]]`` with a shipped LLM's values for the keys that it leaves out."""
    if not isinstance(llm, dict) or any(llm.get(key) for key in _OF_ANOTHER):
        return llm
    shipped = {one.name: one for one in _DEFAULT_LLMS}.get(str(llm.get("name")))
    if shipped is None or llm.get("chat_template", shipped.chat_template) != shipped.chat_template:
        return llm
    return {**{name: getattr(shipped, name) for name in shipped.model_fields_set}, **llm}


class Settings(BaseSettings):
    """All of ``echolm.toml``."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
    )

    grpc_url: str = "localhost:8001"
    """gRPC address of this server, under which the router calls its LLMs."""
    data_dir: sections.HomePath = Path("~/.local/share/echolm")
    """Directory in which EchoLM keeps everything that it writes."""
    event_log: str = ""
    """The learning log: a SQLite file, or for several machines a Redis server, redis:// or
    rediss://[user:password@]host[:port][/database]. Empty means a SQLite file in data_dir."""
    limits: sections.Limits = sections.Limits()
    # Made when it is wanted: a user without a home can import this, and name another path.
    embedding: sections.EmbeddingSettings = Field(default_factory=sections.EmbeddingSettings)
    retrieval: sections.RetrievalSettings = sections.RetrievalSettings()
    routing: sections.RoutingSettings = sections.RoutingSettings()
    feedback: sections.FeedbackSettings = sections.FeedbackSettings()
    learning: sections.LearningSettings = sections.LearningSettings()
    judging: sections.JudgingSettings = sections.JudgingSettings()
    examples: sections.ExamplesSettings = sections.ExamplesSettings()
    replay: sections.ReplaySettings = sections.ReplaySettings()
    triton: sections.TritonSettings = sections.TritonSettings()
    gateway: sections.GatewaySettings = sections.GatewaySettings()
    llms: tuple[LLMSettings, ...] = Field(_DEFAULT_LLMS, min_length=1)

    @field_validator("llms", mode="before")
    @classmethod
    def _shipped_llms(cls, value: Any) -> Any:
        """Sections that only change something of a shipped LLM keep the rest of its defaults."""
        return [_completed(llm) for llm in value] if isinstance(value, list | tuple) else value

    @field_validator("event_log")
    @classmethod
    def _usable_log(cls, value: str) -> str:
        if "://" not in value:
            return value
        try:
            url = urlsplit(value)
            usable = url.scheme in ("redis", "rediss") and url.hostname and url.port != 0
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
        if "stored" in names:
            raise ValueError("llms: 'stored' is reserved for answers from the store")
        longest = max(llm.context_length for llm in self.llms)
        if self.limits.default_max_tokens >= longest:
            raise ValueError(
                f"limits.default_max_tokens: expected less than the longest context, {longest}, "
                f"got {self.limits.default_max_tokens}"
            )
        if self.routing.exploration_floor * len(names) > 1:
            raise ValueError("routing.exploration_floor must be at most 1 / number of llms")
        for key, name in (
            ("routing.default_llm", self.routing.default_llm),
            ("judging.reference_llm", self.judging.reference_llm),
            ("judging.judge_llm", self.judging.judge_llm),
        ):
            if name and name not in names:
                raise ValueError(f"{key}: expected one of {names}, got {name!r}")
        if self.judging.judge_llm and not self.llm(self.judging.judge_llm).can_judge:
            raise ValueError(
                "judging.judge_llm: expected an LLM with llms.can_judge = true, got "
                f"{self.judging.judge_llm!r}"
            )
        if self.replay.off_peak and (problem := self.no_judge):
            raise ValueError(
                f"replay.off_peak: expected a judge in judging.kind, but {problem}: nothing else "
                "says which answer is better"
            )
        unknown = set(self.examples.from_llms) - set(names)
        if unknown:
            raise ValueError(f"examples.from_llms: expected names among {names}, got {unknown}")
        return self

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, *more: Any, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment overrides the file, which arrives as init arguments.
        env_settings.env_vars = with_values_of_files(env_settings.env_vars)
        return env_settings, init_settings

    @property
    def default_llm(self) -> LLMSettings:
        """The LLM that answers when routing fails: the configured one, else the strongest."""
        name = self.routing.default_llm
        return self.llm(name) if name else self.strongest_llm

    @property
    def strongest_llm(self) -> LLMSettings:
        """The LLM of the highest cost, which is taken to be the best."""
        return max(self.llms, key=lambda llm: llm.cost)

    @property
    def reference_llm(self) -> LLMSettings:
        """The LLM with whose answers the others' are compared."""
        name = self.judging.reference_llm
        return self.llm(name) if name else self.strongest_llm

    @property
    def judge_llm(self) -> LLMSettings:
        """The LLM that compares answers where ``judging.kind`` is ``llm``."""
        name = self.judging.judge_llm
        return self.llm(name) if name else self.strongest_llm

    @property
    def judging_limit(self) -> float:
        """Requests in flight to all LLMs above which nothing is judged."""
        limit = self.judging.max_in_flight_llm_requests
        return sum(llm.capacity for llm in self.llms) if limit is None else limit

    @property
    def no_judge(self) -> str:
        """Why no answer can be judged; empty if there is a judge."""
        if self.judging.kind == "none":
            return "judging.kind is 'none'"
        if self.judging.kind == "llm" and not self.judge_llm.can_judge:
            return f"{self.judge_llm.name} cannot judge (llms.can_judge)"
        return ""

    @property
    def example_sources(self) -> frozenset[str]:
        """Names of the LLMs whose answers may become examples."""
        return frozenset(self.examples.from_llms or (self.strongest_llm.name,))

    @property
    def event_log_path(self) -> Path | None:
        """File of the learning log; None if ``event_log`` is the URL of a Redis server."""
        is_url = "://" in self.event_log
        return None if is_url else Path(self.event_log or self.data_dir / "events.sqlite")

    @property
    def relative_costs(self) -> dict[str, float]:
        """Cost of each LLM by its name; that of the strongest is 1."""
        strongest = self.strongest_llm.cost
        return {llm.name: llm.cost / strongest for llm in self.llms}

    def prior_quality(self, llm: LLMSettings) -> float:
        """The quality that is expected of an LLM before any rating, in (0, 1)."""
        if llm.prior_quality is not None:
            return llm.prior_quality
        return 0.9 if llm.cost >= self.strongest_llm.cost else 0.7

    @property
    def write_ahead_log_path(self) -> Path:
        """File of admitted interactions that the store does not have yet."""
        return self.data_dir / "examples.write_ahead_log.sqlite"

    @property
    def statistics_path(self) -> Path:
        """File of the example statistics."""
        return self.data_dir / "examples.statistics.sqlite"

    @property
    def past_traffic_path(self) -> Path:
        """File that says what was learnt from past traffic."""
        return self.data_dir / "past_traffic.sqlite"

    @property
    def load_table_path(self) -> Path:
        """Shared-memory file of all routers' load."""
        return Path(self.routing.load_table or self.data_dir / "load.table")

    @property
    def prefix_index_path(self) -> Path:
        """Shared-memory file of all retrievers' prompt beginnings, beside the load table."""
        table = self.load_table_path
        return table.with_name(f"{table.name}.prompts")

    @property
    def keys_path(self) -> Path:
        """File of the gateway's API keys."""
        return self.gateway.keys_path or self.data_dir / "keys.json"

    @property
    def keys_are_required(self) -> bool:
        """Whether callers of the gateway need a key, and its file must be there."""
        asked = self.gateway.require_keys
        return self.gateway.keys_path is not None if asked is None else asked

    def llm(self, name: str) -> LLMSettings:
        """The LLM of that name; KeyError if it is not configured."""
        return {llm.name: llm for llm in self.llms}[name]
