"""Signals in an interruptible block."""

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
def test_interruptible_with_a_second_signal_at_any_line_of_its_handler(line: int) -> None:
    lines = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_name != "interrupt":
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
