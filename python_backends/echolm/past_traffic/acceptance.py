"""Which logged interactions the service could have answered, and as which LLM's they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from echolm.errors import InvalidRequestError
from echolm.llm.tokens import EstimatedTokens
from echolm.past_traffic.record import Logged, Skipped
from echolm.primitives import Request
from echolm.router.validation import build_request
from echolm.settings import Settings


@dataclass(frozen=True)
class Acceptance:
    """Accepts what is within the limits of requests and was answered by a known LLM.

    Attributes:
        llms: name of a configured LLM for each pattern of a logged model's name; without any,
            all answers count as the reference LLM's.
    """

    settings: Settings
    llms: Mapping[str, str]
    reference: str

    def __call__(self, logged: Logged) -> Logged:
        """The interaction with its LLM; Skipped if it is not accepted."""
        try:
            request_of(logged, self.settings)
        except InvalidRequestError as error:
            raise Skipped("over a limit") from error
        return replace(logged, llm=self._llm(logged))

    def _llm(self, logged: Logged) -> str:
        if not self.llms:
            return self.reference
        for pattern, llm in self.llms.items():
            if any(fnmatchcase(name, pattern) for name in logged.models):
                return llm
        raise Skipped("other model")


def request_of(logged: Logged, settings: Settings) -> Request:
    """The request as this service would have got it.

    An answer may become as long as the request allowed, or about as long as the logged one.

    Raises:
        InvalidRequestError: it is over a limit.
    """
    longest = max(llm.context_length for llm in settings.llms) - 1
    most = min(settings.limits.max_tokens, longest)
    usual = max(settings.limits.default_max_tokens, EstimatedTokens().count(logged.response))
    asked = int(logged.sampling.get("max_tokens", usual))
    return build_request(
        settings,
        text=logged.request,
        system_prompt=logged.system_prompt,
        tenant=logged.tenant,
        **{**logged.sampling, "max_tokens": min(asked, most)},
    )
