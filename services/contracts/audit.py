"""The audit trail: who did what, when, from where, to which noun."""

from enum import StrEnum


class Via(StrEnum):
    """How an actor showed who they are; `open` where no key is asked for, `system` for our own processes."""

    KEY = "key"
    SESSION = "session"
    OPEN = "open"
    SIGNATURE = "signature"
    SYSTEM = "system"
