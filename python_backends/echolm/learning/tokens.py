"""Feedback tokens: opaque, signed, and complete, so that no server keeps state for a rating."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.primitives import OTHER_FEATURES, Decision

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
        d = decision
        context = base64.b64encode(d.context.astype("<f2").tobytes()).decode("ascii")
        fields = [d.request_id, d.tenant, d.llm, context, float(f"{d.propensity:.6g}")]
        fields += [round(d.quality, 4), list(d.example_ids), d.selection, d.revision]
        fields += [d.statistics, d.solicited, round(d.solicit_probability, 5)]
        return str(self._serializer.dumps(fields))

    def load(self, token: str, name: str = "feedback_token") -> Decision:
        """The decision that a token carries; messages call the token by ``name``.

        Raises:
            InvalidRequestError: it was not signed by us, was changed, or has expired.
        """
        try:
            fields = self._serializer.loads(token, max_age=self._ttl_s)
        except SignatureExpired as error:
            expected = f"a token at most {self._ttl_s} s old"
            raise InvalidRequestError.of(name, expected, "an expired one") from error
        except BadSignature as error:
            raise InvalidRequestError.of(name, "a token that this service signed", token) from error
        # Tokens of earlier versions end earlier, and their contexts have other elements.
        request_id, tenant, llm, context, propensity, quality, example_ids, *later = fields
        x = np.frombuffer(base64.b64decode(context), dtype="<f2").astype(np.float32)
        ids = tuple(example_ids)
        decision = Decision(request_id, tenant, llm, x, propensity, quality, ids, *later[:5])
        return decision if len(later) > 2 else replace(decision, statistics=OTHER_FEATURES)
