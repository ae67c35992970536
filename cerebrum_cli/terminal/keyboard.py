"""The keyboard while nobody reads it: what is typed into a reply is not shown in it, and waits for the next prompt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from cerebrum_cli.terminal.streams import plain_terminal


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Keep a terminal from showing what is typed, and from changing it for the prompt: Enter stays Enter.

    Ctrl-C stays a signal. A terminal without a prompt of ours reads lines, and goes on to.
    """
    try:
        import termios
    except ImportError:  # Windows shows nothing before it is read
        yield
        return
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    if not plain_terminal():
        quiet[0] &= ~termios.ICRNL
        quiet[3] &= ~termios.ICANON
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
