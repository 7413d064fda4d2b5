"""Counts the values in a JSON text while it arrives, before it is parsed.

Parsed, `[],` takes thirty times its three bytes, and no other thread runs meanwhile: a server counts first. For other
rooms too: it imports nothing of the sandbox.
"""

from typing import Final

MAX_CONTAINERS: Final = 1 << 19
"""Arrays and objects of one text together."""
MAX_VALUES: Final = 1 << 21
"""Values of one text together."""
_DULL: Final = bytes(set(range(256)) - set(b'"[{,'))


class TooMuchJson(ValueError):
    """The text has more values than any honest client sends; the message says so."""


class JsonBounds:
    """Counts values piece by piece. For text that is not JSON the count is meaningless."""

    def __init__(self, max_values: int | None = None) -> None:
        self._max_values = MAX_VALUES if max_values is None else max_values
        self._num_values = 1
        self._num_containers = 0
        self._is_in_string = False
        self._held = b""

    def take(self, piece: bytes) -> None:
        """The next piece of the text. Raises TooMuchJson when there is more in it than is read."""
        text = self._held + piece
        num_backslashes = len(text) - len(text.rstrip(b"\\"))
        self._held = text[len(text) - num_backslashes % 2 :]  # the escaped character is in the next piece
        if b"\\" in text:
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.translate(None, _DULL).split(b'"')
        outside = b"".join(parts[self._is_in_string :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        num_containers = outside.count(b"[") + outside.count(b"{")
        self._num_containers += num_containers
        self._num_values += num_containers + outside.count(b",")
        if self._num_containers > MAX_CONTAINERS:
            raise TooMuchJson(f"the body has more than {MAX_CONTAINERS:,} arrays and objects")
        if self._num_values > self._max_values:
            raise TooMuchJson(f"the body has more than {self._max_values:,} values")
