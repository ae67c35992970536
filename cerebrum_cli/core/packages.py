"""The command that adds Python packages to the environment this program runs in."""

from __future__ import annotations

import sys


def pip_install(arguments: str) -> str:
    """Shell command that installs into this environment: a plain `pip` may be that of another one, or missing."""
    from shlex import quote

    return f"{quote(sys.executable)} -m pip install {arguments}"
