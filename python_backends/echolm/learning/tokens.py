"""Feedback tokens: opaque, signed, and complete, so that no server keeps state for a rating."""

from __future__ import annotations

import base64

import numpy as np
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.primitives import Decision

_SALT = "echolm.feedback.v1"


class FeedbackTokens:
    """Makes and reads tokens.

    Args:
        signing_key: a secret, the same in every replica.
        ttl_s: seconds for which an answer can be rated.

    Raises:
        ConfigurationError: the key is empty.
    """

    def __init__(self, signing_key: str, ttl_s: int) -> None:
        if not signing_key:
            raise ConfigurationError(
                "feedback.signing_key: expected a secret, got none; `echolm serve` makes one, "
                "replicas must share it (ECHOLM_FEEDBACK__SIGNING_KEY)"
            )
        self._ttl_s = ttl_s
        self._serializer = URLSafeTimedSerializer(signing_key, salt=_SALT)

    def dump(self, decision: Decision) -> str:
        """The token of an answer."""
        context = base64.b64encode(decision.context.astype("<f2").tobytes()).decode("ascii")
        return str(
            self._serializer.dumps(
                [
                    decision.request_id,
                    decision.tenant,
                    decision.llm,
                    context,
                    round(decision.propensity, 4),
                    round(decision.quality, 4),
                    list(decision.example_ids),
                    decision.selection,
                    decision.revision,
                ]
            )
        )

    def load(self, token: str, name: str = "feedback_token") -> Decision:
        """The decision that a token carries.

        Args:
            name: the input that holds it, for messages.

        Raises:
            InvalidRequestError: it was not signed by us, was changed, or has expired.
        """
        try:
            fields = self._serializer.loads(token, max_age=self._ttl_s)
        except SignatureExpired as error:
            raise InvalidRequestError.of(
                name, f"a token at most {self._ttl_s} s old", "an expired one"
            ) from error
        except BadSignature as error:
            raise InvalidRequestError.of(name, "a token that this service signed", token) from error
        request_id, tenant, llm, context, propensity, quality, example_ids, *later = fields
        return Decision(
            request_id=request_id,
            tenant=tenant,
            llm=llm,
            context=np.frombuffer(base64.b64decode(context), dtype="<f2").astype(np.float32),
            propensity=propensity,
            quality=quality,
            example_ids=tuple(example_ids),
            # Tokens of earlier versions end earlier.
            selection=later[0] if later else "",
            revision=later[1] if len(later) > 1 else "",
        )
