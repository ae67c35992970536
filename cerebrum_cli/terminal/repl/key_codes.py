"""Keys that newer terminals send as "CSI u" or xterm's modifyOtherKeys, read as the characters of older ones."""

from __future__ import annotations

import re

from prompt_toolkit.input.posix_utils import PosixStdinReader

from cerebrum_cli.core.text import Match
from cerebrum_cli.terminal.keyboard import without_reports

KEY = re.compile(
    r"\x1b\[(?:(13;[2-8]u|27;[2-8];13~)"  # Enter with any of Shift, Alt and Ctrl
    r"|(6[4-9]|[7-9]\d|1[01]\d|12[0-6]);5u"  # Ctrl with a letter, or one of @[\]^_`{|}~
    r"|(\d{1,4});2u|(\d{1,4})(?:;1)?u"  # a character with Shift, or alone
    r"|[\d;:]+u|27;\d+;\d+~)"  # others
)
QUEUED = 4096  # bytes that a terminal holds until they are read, so that no report is read in parts


class KeyReader(PosixStdinReader):
    """Reader of a terminal's input with these characters; it ignores keys without one, and reports.

    `pending` goes before what is read next.
    """

    pending = ""

    def read(self, count: int = QUEUED) -> str:
        text, self.pending = self.pending + super().read(count), ""
        return KEY.sub(_character, without_reports(text))


def _character(key: Match) -> str:
    new_line, control, shifted, code = key.groups()
    if control:
        return chr(int(control) & 31)
    if shifted:
        return chr(int(shifted)).upper()
    if code:
        return chr(int(code))
    return "\n" if new_line else ""
