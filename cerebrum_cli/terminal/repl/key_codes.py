"""What terminals send beside characters: newer codes of keys become those of older ones, and reports are dropped.

Newer keys are "CSI u" and xterm's modifyOtherKeys. Reports answer queries of other programs, or come from modes that
these left on.
"""

from __future__ import annotations

import re

from prompt_toolkit.input.posix_utils import PosixStdinReader

from cerebrum_cli.core.text import Match

CODE = re.compile(
    r"\x1b\[(?:(13;[2-8]u|27;[2-8];13~)"  # Enter with any of Shift, Alt and Ctrl
    r"|(6[4-9]|[7-9]\d|1[01]\d|12[0-6]);5u"  # Ctrl with a letter, or one of @[\]^_`{|}~
    r"|(\d{1,4});2u|(\d{1,4})(?:;1)?u"  # a character with Shift, or alone
    r"|[\d;:]+u|27;\d+;\d+~"  # other keys
    r"|[IO]|<[\d;]*[mM]|M...|\d+;\d+;\d+M"  # the focus, and the mouse
    r"|[?>=][\d;]*\$?[a-z]|[\d;]+[nt])"  # modes, versions and sizes
    r"|\x1b(?:\]\d+;|P[>|\d$+]|_G)[^\x07\x1b]*(?:\x07|\x1b\\)",  # colors and other texts
    re.DOTALL,
)
QUEUED = 4096  # bytes that a terminal holds until they are read, so that no report is read in parts


class KeyReader(PosixStdinReader):
    """Reader of a terminal's input with these characters; `pending` goes before what is read next."""

    pending = ""

    def read(self, count: int = QUEUED) -> str:
        text, self.pending = self.pending + super().read(count), ""
        return CODE.sub(_character, text)


def _character(code: Match) -> str:
    new_line, control, shifted, character = code.groups()
    if control:
        return chr(int(control) & 31)
    if shifted:
        return chr(int(shifted)).upper()
    if character:
        return chr(int(character))
    return "\n" if new_line else ""
