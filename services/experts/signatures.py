"""Signatures on consultations and their answers, as the Standard Webhooks specification has them.

A question is signed with a fresh or the consultation's id as `webhook-id`; its answer is signed with the same id, so
that an old answer cannot be passed off as the answer to another question.
"""

import binascii
from collections.abc import Mapping
from datetime import UTC, datetime

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook, WebhookVerificationError

from services.errors import InvalidInput

ID_HEADER = "webhook-id"


class SecretUnusable(InvalidInput):
    """The signing secret is not `whsec_` followed by base64."""

    title = "Unusable signing secret"
    hint = "Use `whsec_` followed by 24 to 64 random bytes in base64."


class SignatureInvalid(ValueError):
    """The signature is missing, too old, or was not made with this secret over these bytes."""


def sign(secret: str, message_id: str, body: bytes) -> dict[str, str]:
    """The headers that sign a body of UTF-8 text. Errors: SecretUnusable."""
    now = datetime.now(UTC)
    return {
        ID_HEADER: message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": _webhook(secret).sign(message_id, now, body.decode()),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """The signed message id of a body. Raises SignatureInvalid with the reason. Errors: SecretUnusable."""
    webhook = _webhook(secret)
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        webhook.verify(body, lowered, json_parse=False)
    except (WebhookVerificationError, ValueError) as error:
        raise SignatureInvalid(f"the signature does not hold: {error}") from None
    return lowered[ID_HEADER]


def _webhook(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except (binascii.Error, EmptyWebhookSecretError, ValueError) as error:
        raise SecretUnusable(f"the signing secret cannot be used: {error}") from None
