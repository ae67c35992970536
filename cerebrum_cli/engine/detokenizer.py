"""Bytes of tokens in, text out: a character is shown when it is whole, a stop string never.

Both stages work token by token and hold back only what may still change.
"""

from __future__ import annotations

import codecs

from cerebrum_cli.ground.text import earliest, held_back


class Detokenizer:
    """Turn one sequence's pieces into text that can be shown."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is certain now, and whether a stop string ended it."""
        return self._cut(self._decoder.decode(piece))

    def flush(self) -> tuple[str, bool]:
        """Return what was held back; half a character becomes U+FFFD."""
        text, stopped = self._cut(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest, stopped

    def _cut(self, text: str) -> tuple[str, bool]:
        if not self._stop:
            return text, False
        text = self._held + text
        if found := earliest(text, self._stop):
            self._held = ""
            return text[: found[0]], True
        keep = len(text) - held_back(text, self._stop)
        self._held = text[keep:]
        return text[:keep], False
