"""Signals during imports, which no exception may interrupt."""

from __future__ import annotations

from types import FrameType


def is_importing(frame: FrameType | None) -> bool:
    """Whether an import is running in this frame or below it: an exception there can be lost, or leave a lock taken."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
