"""Edit a text or a file in the user's editor."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.settings import environment
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.repl.signals import Signals

DEFAULT_EDITORS = ("nano", "vi", "notepad")
LINE_EDITORS = ("emacs", "emacsclient", "joe", "kak", "micro", "nano", "nvim", "vi", "vim")  # that take +LINE
TERMINATE_TIMEOUT_S = 2.0  # between terminating an editor and killing it


def edit_text(text: str, keyboard: Keyboard, signals: Signals) -> str:
    """Edit a text and return the result. Raises UsageError if the editor fails, or does not write UTF-8.

    The editor gets the terminal in its initial modes and handles Ctrl-C itself; SIGTERM and SIGHUP end it.
    """
    with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
        path = Path(directory) / "text.md"
        path.write_text(text + "\n", encoding="utf-8")
        with keyboard.released(), signals.released():
            edit_file(path)
        try:
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the edited text cannot be read: {error}", "set $EDITOR to another editor") from error


def edit_file(path: Path, line: int | None = None) -> None:
    """Open a file in $VISUAL, $EDITOR or a default editor, at a line if the editor is known to take one.

    Raises UsageError if the editor fails, and Interrupted if Ctrl-C ends it.
    """
    command = environment("VISUAL") or environment("EDITOR") or next(filter(shutil.which, DEFAULT_EDITORS), None)
    if command is None:
        raise UsageError("no editor found", "set $EDITOR")
    try:
        words = shlex.split(command)
        at = [f"+{line}"] if line is not None and words and Path(words[0]).name in LINE_EDITORS else []
        with running([*words, *at, str(path)]) as editor:
            exit_code = editor.wait()
        if exit_code == -signal.SIGINT:
            raise Interrupted(signal.SIGINT, "no changes")
        if exit_code:
            raise subprocess.CalledProcessError(exit_code, command)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the editor {command} failed: {reason}", "set $EDITOR to another editor") from error


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and end it on exit from this context."""
    program = subprocess.Popen(command)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.terminate()
            try:
                program.wait(TERMINATE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
