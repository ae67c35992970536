"""Keep a model's text from steering the terminal."""

from __future__ import annotations

import re

# Whole sequences first (CSI; OSC, DCS, SOS, PM and APC up to their end), then two-byte escapes, then lone controls.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*)\Z"
)
LONGEST = 4096  # characters an unfinished sequence may hide before it is taken for text with its controls dropped


def strip_controls(text: str) -> str:
    """Return the text without escape sequences and control characters other than tab and newline."""
    return _SEQUENCE.sub("", text)


class ControlFilter:
    """Strip control sequences from a stream, also those that are cut between two pieces."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what can be shown now."""
        text = self._held + text
        self._held = ""
        unfinished = _UNFINISHED.search(text)
        if unfinished and len(unfinished[0]) <= LONGEST:
            self._held = unfinished[0]
            text = text[: unfinished.start()]
        return strip_controls(text)

    def flush(self) -> str:
        """Return what was held back, as the stream ends: a sequence that never ended is text, but for its controls."""
        text, self._held = self._held, ""
        return strip_controls(text)
