"""The clipboard, by a program of the system or through the terminal (OSC 52)."""

from __future__ import annotations

import base64
import shutil
import subprocess
from contextlib import suppress

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.terminal.streams import Streams, is_dumb_terminal

CLIPBOARD_PROGRAMS = ("wl-copy", "xclip -selection clipboard", "xsel --clipboard --input", "pbcopy", "clip.exe")
# tmux ignores OSC 52 from its programs unless `set-clipboard` is on, but writes it itself for this command.
TMUX = "tmux load-buffer -w -"
TMUX_COPIES = "tmux, to its buffer and, if the terminal supports it, to the clipboard"
CLIPBOARD_TIMEOUT_S = 5.0


def copy_to_clipboard(streams: Streams, text: str) -> str:
    """Copy a text and return the name of the program or protocol used.

    Raises UsageError without a clipboard program if output is piped or the terminal takes no control sequences.
    """
    is_remote = environment("SSH_TTY") or environment("SSH_CONNECTION")  # only OSC 52 reaches the user's clipboard
    programs = () if is_remote else CLIPBOARD_PROGRAMS
    if environment("TMUX"):
        programs = (*programs, TMUX)
    for program in programs:
        command = program.split()
        if shutil.which(command[0]):
            with suppress(OSError, subprocess.SubprocessError):
                # Output is not captured: xclip keeps running to serve the clipboard and would hold the pipe open.
                subprocess.run(
                    command,
                    input=text.encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=CLIPBOARD_TIMEOUT_S,
                    check=True,
                )
                return TMUX_COPIES if program == TMUX else command[0]
    if not streams.out_is_terminal or is_dumb_terminal():
        raise UsageError("no clipboard available", "install wl-copy or xclip, or use /export")
    streams.answer(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07", is_styled=True)
    if (environment("TERM") or "").startswith(("tmux", "screen")):  # on another machine than ours
        return "the terminal (OSC 52), if supported; in tmux, run: tmux set -g set-clipboard on"
    return "the terminal (OSC 52), if supported"
