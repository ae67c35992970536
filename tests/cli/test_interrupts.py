"""Signals in an interruptible block."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from command_line import CommandLine

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.doctor.checks import NANO
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


def test_interruptible_lets_an_import_finish_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass\nis_complete = True\n"
    (tmp_path / "interrupted_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted), interruptible("nothing is left"):
        module = importlib.import_module("interrupted_module")
        assert module.is_complete
        time.sleep(10)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [25, 100])
def test_interrupt_of_the_first_imports_exits_quietly(tmp_path: Path, lines: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "cerebrum_cli", "ask", "hello"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=CommandLine(tmp_path).environment(),
        text=True,
    )
    assert process.stderr
    assert any(line.endswith(" cerebrum_cli\n") for line in process.stderr)
    for _ in range(lines):
        process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == []


TOKENIZE = """
import sys
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary

params = llama.llama_model_default_params()
params.vocab_only = True
vocabulary = LlamaVocabulary(llama.llama_model_load_from_file(sys.argv[1].encode(), params))
print("ready", flush=True)
vocabulary.tokenize((Text("\\n" * 1_000_000),))  # its vocabulary takes a minute
"""


@pytest.mark.slow
def test_second_interrupt_ends_the_process_during_tokenization() -> None:
    process = subprocess.Popen([sys.executable, "-c", TOKENIZE, NANO], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for _ in range(2):
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == 130
    process.stdout.close()
