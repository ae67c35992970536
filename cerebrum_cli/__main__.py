"""Entry point of `cerebrum` and `python -m cerebrum_cli`: Ctrl-C ends the process quietly from here on."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

from cerebrum_cli.core.signals import is_importing

INTERRUPTED = 130
# New objects that trigger a collection: with the default, a batch on servers spends a tenth of its time on collections.
# Short commands never reach this number.
GC_THRESHOLD = 100_000
NO_WINDOWS = """error: native Windows is not supported
 hint: use WSL, the Windows Subsystem for Linux: https://learn.microsoft.com/windows/wsl/install"""


def main() -> None:
    """Run the command line. Its imports take long enough to be interrupted.

    Windows has no file locks, terminal modes and signals like those of POSIX, and does not rename open files.
    """
    if sys.platform == "win32":
        sys.exit(NO_WINDOWS)
    gc.set_threshold(GC_THRESHOLD)
    code = INTERRUPTED
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        from cerebrum_cli.main import run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one during shutdown would print a traceback
    except KeyboardInterrupt:  # before or after a command runs
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # otherwise the interpreter would search all objects for garbage, longer than many commands run
    sys.exit(code)


def interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or exit during an import."""
    if is_importing(frame):
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current directory, whose packages are no part of this installation
    main()
