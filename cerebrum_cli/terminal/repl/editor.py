"""Edit a text in the user's editor."""

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
TERMINATE_TIMEOUT_S = 2.0  # between terminating an editor and killing it


def edit_text(text: str, keyboard: Keyboard, signals: Signals) -> str:
    """Edit a text in $VISUAL, $EDITOR or a default editor and return the result; UsageError if the editor fails.

    The editor gets the terminal in its initial modes and handles Ctrl-C itself; SIGTERM and SIGHUP end it.
    """
    command = environment("VISUAL") or environment("EDITOR") or next(filter(shutil.which, DEFAULT_EDITORS), None)
    if command is None:
        raise UsageError("no editor found", "set $EDITOR")
    with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
        path = Path(directory) / "text.md"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            with keyboard.released(), signals.released(), running([*shlex.split(command), str(path)]) as editor:
                exit_code = editor.wait()
            if exit_code == -signal.SIGINT:
                raise Interrupted(signal.SIGINT, "no changes")
            if exit_code:
                raise subprocess.CalledProcessError(exit_code, command)
            return path.read_text(encoding="utf-8").rstrip("\n")
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
