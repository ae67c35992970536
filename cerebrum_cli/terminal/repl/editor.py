"""A text in the user's own editor."""

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
from cerebrum_cli.terminal.repl.keyboard import Keyboard
from cerebrum_cli.terminal.repl.signals import Signals

USUAL = ("nano", "vi", "notepad")
PATIENCE_S = 2.0  # for an editor that is asked to end


def edited(text: str, keyboard: Keyboard, signals: Signals) -> str:
    """Return a text as the user leaves it in $VISUAL, $EDITOR or a usual editor; UsageError where that fails.

    The editor has the terminal as it was found, and Ctrl-C to itself. A signal that asks to leave ends it.
    """
    command = environment("VISUAL") or environment("EDITOR") or next(filter(shutil.which, USUAL), None)
    if command is None:
        raise UsageError("there is no editor here", "name one in $EDITOR")
    with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
        path = Path(directory) / "text.md"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            with keyboard.lent(), signals.lent(), started([*shlex.split(command), str(path)]) as editor:
                code = editor.wait()
            if code == -signal.SIGINT:
                raise Interrupted(signal.SIGINT, "nothing is changed")
            if code:
                raise subprocess.CalledProcessError(code, command)
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the editor {command} failed: {error}", "name another in $EDITOR") from error


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and end it with this."""
    program = subprocess.Popen(command)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.terminate()
            try:
                program.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
