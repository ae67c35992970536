"""Bytes of tokens in, text out: a character is shown when it is whole, a stop string never.

Both stages work token by token and hold back only what may still change.
"""

from __future__ import annotations

import codecs

from cerebrum_cli.core.text import held_back


class Detokenizer:
    """Turn one sequence's pieces into text that can be shown; of several stop strings the first to be whole counts."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is certain now, and whether a stop string ended it."""
        return self._split_at_stop(self._decoder.decode(piece))

    def flush(self) -> tuple[str, bool]:
        """Return what was held back; half a character becomes U+FFFD."""
        text, stopped = self._split_at_stop(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest, stopped

    def _split_at_stop(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            self._decoder.reset()  # what came after a stop string is never shown, nor half a character of it
            return text[: min(ends)[1]], True
        keep = len(text) - held_back(text, self._stop)
        self._held = text[keep:]
        return text[:keep], False
