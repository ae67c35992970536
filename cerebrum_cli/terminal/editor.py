"""A text in the user's own editor."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from cerebrum_cli.ground.errors import UsageError
from cerebrum_cli.ground.settings import environment

USUAL = ("nano", "vi", "notepad")


def edited(text: str) -> str:
    """Return a text as the user leaves it in $VISUAL, $EDITOR or a usual editor; UsageError where that fails."""
    command = environment("VISUAL") or environment("EDITOR") or next(filter(shutil.which, USUAL), None)
    if command is None:
        raise UsageError("there is no editor here", "name one in $EDITOR")
    with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
        path = Path(directory) / "text.md"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the editor {command} failed: {error}", "name another in $EDITOR") from error
