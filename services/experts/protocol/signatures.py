"""Signatures on consultations and their answers, as the Standard Webhooks specification has them.

A consultation is signed with a fresh id or its own as `webhook-id`; its answer is signed with the same id, so
that an old answer cannot be passed off as the answer to another one. The library makes the signatures; they are
compared here, because it knows no clock but this machine's.
"""

import binascii
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from services.runtime.errors import InvalidInput

ID_HEADER = "webhook-id"
TOLERANCE: Final = timedelta(minutes=5)  # as the specification advises


class SecretUnusable(InvalidInput):
    """The signing secret is not `whsec_` followed by base64."""

    title = "Unusable signing secret"
    hint = "Use `whsec_` followed by 24 to 64 random bytes in base64."


class SignatureInvalid(ValueError):
    """The signature is missing, too old, or was not made with this secret over these bytes."""


class ClockDiffers(SignatureInvalid):
    """The signature was made with this secret over these bytes, at a time that is far from now."""


def sign(secret: str, message_id: str, body: bytes, now: datetime | None = None) -> dict[str, str]:
    """The headers that sign a body of UTF-8 text. now: by this machine's clock where absent. Errors: SecretUnusable."""
    now = now or datetime.now(UTC)
    return {
        ID_HEADER: message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": _webhook(secret).sign(message_id, now, body.decode()),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: datetime | None = None) -> str:
    """The signed message id of a body. Raises SignatureInvalid with the reason, ClockDiffers where only the time does
    not fit. Errors: SecretUnusable."""
    webhook = _webhook(secret)
    message_id, stamp, signed = (_find(headers, name) for name in (ID_HEADER, "webhook-timestamp", "webhook-signature"))
    try:
        sent_at = datetime.fromtimestamp(int(stamp), UTC)
        expected = webhook.sign(message_id, sent_at, body.decode())
    except (ValueError, OverflowError, OSError) as error:
        raise SignatureInvalid(f"the signature does not hold: {error}") from None
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in signed.split()):
        raise SignatureInvalid("the signature does not hold: it was not made with this secret over this body")
    ahead = sent_at - (now or datetime.now(UTC))
    if abs(ahead) > TOLERANCE:
        word = "ahead of ours" if ahead > timedelta(0) else "behind ours, or the message is old"
        raise ClockDiffers(f"its clock is {abs(ahead).total_seconds() / 60:.0f} minutes {word}")
    return message_id


def _find(headers: Mapping[str, str], wanted: str) -> str:
    found = next((value for name, value in headers.items() if name.lower() == wanted), "")
    if not found:
        raise SignatureInvalid(f"the header {wanted} is missing")
    return found


def _webhook(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except (binascii.Error, EmptyWebhookSecretError, ValueError) as error:
        raise SecretUnusable(f"the signing secret cannot be used: {error}") from None
