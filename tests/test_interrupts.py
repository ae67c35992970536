"""What a signal does where it ends what is done at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import pytest

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.terminal.interrupts import interruptible


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_of_two_signals_at_once_one_is_obeyed(line: int) -> None:
    lines = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name != "take":
            return None
        if event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == line:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    before = sys.gettrace()
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        sys.settrace(trace)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        finally:
            sys.settrace(before)
