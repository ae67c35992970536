"""Incremental detokenization: only complete characters are emitted, and stop strings never are.

Text is held back only while further tokens may still change it.
"""

from __future__ import annotations

import codecs

from cerebrum_cli.core.text import partial_marker_length
from cerebrum_cli.engine.control import AnswerStart, AnswerStartFactory, Upcoming


class Detokenizer:
    """Convert the bytes of one sequence's tokens to text, up to the stop string that completes first.

    With `answer_start`, stop strings are text like any other before the answer.
    """

    def __init__(self, stop: tuple[str, ...], answer_start: AnswerStartFactory | None = None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        start = answer_start() if answer_start and stop else None
        self._start = start if start and not _has_started(start) else None

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """Decode the bytes of some tokens: the text that is final now, and whether a stop string ended it."""
        return self._split_at_stop(self._decoder.decode(piece))

    def lets_pass(self, upcoming: Upcoming) -> int:
        """Number of the next tokens that complete no stop string, so that they may be fed together."""
        if self._start and self._start.stage != "answer":
            return self._start.lets_pass(upcoming)
        return min((upcoming.before(stop) for stop in self._stop), default=len(upcoming.tokens))

    @property
    def held(self) -> bytes:
        """Text that was fed and is not final."""
        return self._held.encode("utf-8", "surrogatepass") + self._decoder.getstate()[0]

    def flush(self, is_truncated: bool = False) -> tuple[str, bool]:
        """Flush the text held back; an incomplete character becomes U+FFFD, or is dropped from a truncated reply."""
        if is_truncated:
            self._decoder.reset()
        text, stopped = self._split_at_stop(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest, stopped

    def _split_at_stop(self, text: str) -> tuple[str, bool]:
        before, text = self._split_at_answer(text) if self._start else ("", self._held + text)
        if self._start:
            self._held = text
            return before, False
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            self._decoder.reset()  # drop an incomplete character that follows the stop string
            return before + text[: min(ends)[1]], True
        keep = len(text) - partial_marker_length(text, self._stop)
        self._held = text[keep:]
        return before + text[:keep], False

    def _split_at_answer(self, text: str) -> tuple[str, str]:
        """Split off what precedes the answer; the rest is of the answer, or may be as long as it has not started."""
        assert self._start
        self._start.feed((), text)
        text = self._held + text
        at = max(0, text.rfind(self._start.held))
        if _has_started(self._start):
            self._start = None
        return text[:at], text[at:]


def _has_started(start: AnswerStart) -> bool:
    """Whether text of the answer is known, not only that it follows."""
    return start.stage == "answer" and bool(start.held)
