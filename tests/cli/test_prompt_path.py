"""How many functions a prompt passes from `cerebrum ask` to llama_decode."""

from __future__ import annotations

import sys
import threading
from functools import partial
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from scripted_command import app_for

from cerebrum_cli.main import run
from cerebrum_cli.model.installation import open_with_llama
from cerebrum_cli.terminal.streams import Streams

PACKAGE = Path(__file__).parents[2] / "cerebrum_cli"
MAX_FUNCTIONS = 33
# Where the prompt changes its form or its thread, by the event at which it is there.
STATIONS = {
    "compose_prompt": "call",
    "EmbeddedFormat.render": "call",
    "LlamaVocabulary.tokenize": "call",
    "create_sequences": "call",
    "Commands.send": "call",
    "Commands.take": "return",
    "Scheduler.admit": "call",
    "Scheduler.schedule": "call",
    "LlamaContext.decode": "call",
}

Function = tuple[str, str]
"""A module of the package, and the name of a function in it."""


class PromptPath:
    """A profiler that collects the functions on the stack at each station, up to the first decode."""

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self._has_decoded = False

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        name = frame.f_code.co_qualname
        if self._has_decoded or STATIONS.get(name) != event or (event == "return" and result is None):
            return
        self.functions += [each for each in functions_on(frame) if each not in self.functions]
        self._has_decoded = name == "LlamaContext.decode"


def functions_on(frame: FrameType | None) -> list[Function]:
    """The functions of the package on a stack, outermost first, from the run of the command on."""
    functions: list[Function] = []
    while frame and functions[-1:] != [("cli/ask.py", "ask")]:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            functions.append((str(path.relative_to(PACKAGE)), frame.f_code.co_qualname))
        frame = frame.f_back
    return functions[::-1]


@pytest.mark.slow
def test_prompt_passes_few_functions_on_its_way_to_llama_decode(tmp_path: Path) -> None:
    app = app_for({}, tmp_path, Streams(StringIO(), StringIO(), None, False, False, False))
    app.open_file = partial(open_with_llama, tmp_path)
    path = PromptPath()
    threading.setprofile(path)
    sys.setprofile(path)
    try:
        code = run(
            ["ask", "-m", str(PACKAGE / "data" / "nano.gguf"), "-n", "1", "--no-log", "-q", "What is 3 plus 4?"], app
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert code == 0
    assert path.functions[0] == ("cli/ask.py", "ask")
    assert STATIONS.keys() <= {name for _, name in path.functions}
    assert path.functions[-1] == ("engine/llama/context.py", "LlamaContext.decode")
    assert len(path.functions) <= MAX_FUNCTIONS, "\n".join(map(" ".join, path.functions))
