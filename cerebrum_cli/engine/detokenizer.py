"""Incremental detokenization: only complete characters are emitted, and stop strings never are.

Text is held back only while further tokens may still change it.
"""

from __future__ import annotations

import codecs

from cerebrum_cli.core.text import partial_marker_length


class Detokenizer:
    """Convert the token bytes of one sequence to text, up to the stop string that completes first."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """Decode a token's bytes: the text that is final now, and whether a stop string ended it."""
        return self._split_at_stop(self._decoder.decode(piece))

    def flush(self, is_truncated: bool = False) -> tuple[str, bool]:
        """Flush the text held back; an incomplete character becomes U+FFFD, or is dropped from a truncated reply."""
        if is_truncated:
            self._decoder.reset()
        text, stopped = self._split_at_stop(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest, stopped

    def _split_at_stop(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            self._decoder.reset()  # drop an incomplete character that follows the stop string
            return text[: min(ends)[1]], True
        keep = len(text) - partial_marker_length(text, self._stop)
        self._held = text[keep:]
        return text[:keep], False
