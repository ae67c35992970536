"""Run `cerebrum` with these arguments; the last line of standard error is JSON of what it ran of the package.

`functions` that ran, class bodies included, the `deepest` chain of calls, and the `stations`: the functions on the
stack at each milestone of the prompt and the reply. Only a fresh process runs the class bodies.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).parents[2] / "cerebrum_cli"
# Where the prompt, then the reply, changes its form or its thread, by the event at which it is there.
MILESTONES = {
    "compose_prompt": "call",
    "PlainFormat.render": "call",
    "LlamaVocabulary.tokenize": "call",
    "create_sequences": "call",
    "Commands.send": "call",
    "Commands.take": "return",
    "Scheduler.admit": "call",
    "Scheduler.schedule": "call",
    "LlamaContext.decode": "call",
    "LlamaSampler.sample": "call",
    "Detokenizer.feed": "call",
    "EventQueue.__next__": "return",
    "split_channels": "call",
    "Reply.emit": "call",
    "Streams.answer": "call",
}


class Profile:
    """The functions that run, their deepest chain, and those on the stack at the milestones up to the first answer."""

    def __init__(self) -> None:
        self.functions: set[str] = set()
        self.deepest: list[str] = []
        self.stations: list[str] = []
        self.passed: list[str] = []

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return") or not is_counted(frame):
            return
        chain = chain_to(frame)
        self.functions.add(chain[-1])
        self.deepest = max(self.deepest, chain, key=len)
        name = frame.f_code.co_qualname
        if MILESTONES.get(name) != event or (event == "return" and result is None) or "Streams.answer" in self.passed:
            return
        if name == "EventQueue.__next__" and "LlamaContext.decode" not in self.passed:
            return  # an event of loading
        self.passed.append(name)
        self.stations += [function for function in chain if function not in self.stations]


def is_counted(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<")


def chain_to(frame: FrameType | None) -> list[str]:
    """The functions of the package on a stack, each with its module, outermost first."""
    chain = []
    while frame:
        if is_counted(frame):
            chain.append(f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return chain[::-1]


def run_profiled() -> None:
    profile = Profile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        from cerebrum_cli.__main__ import main

        main()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        found = {
            "functions": sorted(profile.functions),
            "deepest": profile.deepest,
            "stations": profile.stations,
            "passed": sorted(set(profile.passed)),
        }
        sys.stderr.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    run_profiled()
