"""Control characters and escape sequences, with which a text could control the terminal that shows it."""

from __future__ import annotations

import re

# Complete sequences first (CSI; OSC, DCS, SOS, PM and APC to their terminator), two-byte escapes, single controls, and
# bidirectional overrides, embeddings and isolates, with which text can be shown in another order than it is stored.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*)\Z"
)
MAX_HELD = 4096  # characters held back for an incomplete sequence; a longer one is shown as text without its controls


def strip_controls(text: str) -> str:
    """Remove escape sequences, control characters other than tab and newline, and bidirectional controls."""
    return _SEQUENCE.sub("", text)


def strip_complete(text: str) -> tuple[str, str]:
    """A text without its controls, and apart from it an incomplete sequence at its end, to go before the next text."""
    unfinished = _UNFINISHED.search(text)
    if unfinished and len(unfinished[0]) <= MAX_HELD:
        return strip_controls(text[: unfinished.start()]), unfinished[0]
    return strip_controls(text), ""
