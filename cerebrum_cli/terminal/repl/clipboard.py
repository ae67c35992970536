"""Copy text to the clipboard, with a system program or through the terminal (OSC 52)."""

from __future__ import annotations

import base64
import shutil
import subprocess

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import environment
from cerebrum_cli.terminal.streams import Streams, is_dumb_terminal

# A program needs its display; over SSH there is none, and only OSC 52 reaches the user's clipboard.
PROGRAMS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    (None, ("pbcopy",)),
    (None, ("clip.exe",)),
)
TIMEOUT_S = 5.0


def copy_to_clipboard(streams: Streams, text: str) -> str:
    """Copy a text and return the name of the program or protocol used.

    Raises UsageError without a clipboard program if output is piped or the terminal takes no control sequences.
    """
    if environment("SSH_TTY") is None:
        for display, command in PROGRAMS:
            if (display is None or environment(display)) and shutil.which(command[0]) and _run(command, text):
                return command[0]
    if not streams.out_is_terminal or is_dumb_terminal():
        raise UsageError("no clipboard available", "install wl-copy or xclip, or use /export")
    encoded = base64.b64encode(text.encode()).decode("ascii")
    streams.send_control(f"\x1b]52;c;{encoded}\x07")
    return "the terminal (OSC 52), if supported"


def _run(command: tuple[str, ...], text: str) -> bool:
    try:
        # Output is not captured: xclip keeps running to serve the clipboard and would hold the pipe open.
        quiet = subprocess.DEVNULL
        completed = subprocess.run(
            command, input=text.encode(), stdout=quiet, stderr=quiet, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return completed.returncode == 0
