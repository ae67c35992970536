"""Text for the clipboard: by the system's own program where there is one, else through the terminal."""

from __future__ import annotations

import base64
import shutil
import subprocess

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import environment
from cerebrum_cli.terminal.streams import Streams, dumb_terminal

# Each works where its display does; a terminal far away has neither, and takes OSC 52.
PROGRAMS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    (None, ("pbcopy",)),
    (None, ("clip.exe",)),
)
PATIENCE_S = 5.0


def copy(streams: Streams, text: str) -> str:
    """Copy a text and return how. UsageError where there is no way: output in a pipe or on a
    terminal that understands no control sequence, and no program for it."""
    if environment("SSH_TTY") is None:
        for display, command in PROGRAMS:
            if (display is None or environment(display)) and shutil.which(command[0]) and _given(command, text):
                return command[0]
    if not streams.out_is_terminal or dumb_terminal():
        raise UsageError("there is no clipboard here", "install wl-copy or xclip, or use /export")
    coded = base64.b64encode(text.encode()).decode("ascii")
    streams.command(f"\x1b]52;c;{coded}\x07")
    return "the terminal, if it lets programs copy"


def _given(command: tuple[str, ...], text: str) -> bool:
    try:
        # Not captured: xclip stays to serve the clipboard, and would hold a pipe open.
        quiet = subprocess.DEVNULL
        done = subprocess.run(command, input=text.encode(), stdout=quiet, stderr=quiet, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
