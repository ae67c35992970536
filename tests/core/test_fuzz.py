"""Random templates and grammars: no native abort, traceback, endless case, or use of 2 GB."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import PYTHON, CommandLine, assert_error
from tiny_models import write_chatml

pytestmark = pytest.mark.slow

FUZZING = Path(__file__).parents[1] / "support" / "fuzzing.py"
COUNTS = {"templates": 125, "grammars": 150}  # a second together


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.fuzz) for seed in range(1, 11))])
@pytest.mark.parametrize("kind", COUNTS)
def test_random_input_is_an_error_at_worst(kind: str, seed: int) -> None:
    count = COUNTS[kind] * (16 if seed else 1)
    command = [sys.executable, "-X", "faulthandler", str(FUZZING), kind, str(seed), str(count)]
    done = subprocess.run(command, env={**os.environ, "GGML_NO_BACKTRACE": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, ()),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", ("--dry-run",)),
    ],
    ids=("loops", "recursion"),
)
def test_two_interrupts_end_a_template(user: CommandLine, loop: str, options: tuple[str, ...]) -> None:
    template = f"{{{{ messages[-1].content }}}}{{% if messages[-1].content == 'loop' %}}{loop}{{% endif %}}"
    model = write_chatml(user.home / "endless.gguf", chat_template=template)
    process = user.start("ask", "--set", "verbose=on", "-m", model, "loop", *options)
    assert process.stderr
    while b"vocab_only" not in (line := process.stderr.readline()) and b"load_tensors: " not in line:
        assert line, "the process has ended"
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_hostile_template_is_an_error_line(user: CommandLine) -> None:
    model = write_chatml(user.home / "hostile.gguf", chat_template="{{ 'a' * 3 * 10 ** 9 }}")
    assert_error(user.run_process("ask", "-m", model, "hi"), 2, "hostile.gguf: its chat template takes too much memory")


# Python whose child processes check a template for 1 s.
IMPATIENT = f"""#!/bin/sh
shift 3
exec {PYTHON} -P -c "import sys
from cerebrum_cli.engine.llama import first_load
first_load.MAX_CHECK_S = 1
first_load.main(*sys.argv[1:])" "$@"
"""


def test_hostile_template_file_is_an_error_line(
    user: CommandLine, chatml_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user.home / "python").write_text(IMPATIENT)
    (user.home / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(user.home / "python"))
    path = user.home / "hostile.jinja"
    path.write_text("{{ 9 ** (9 ** 9) }}")  # computed when it is compiled
    arguments = ("-m", chatml_model, "--chat-template", path)
    problem = "takes longer than 5 s"
    assert_error(user.run("ask", *arguments, "hi", "--dry-run"), 2, f"{path}: its chat template", problem)


def test_sound_template_file_is_tried_once(user: CommandLine, chatml_model: Path) -> None:
    path = user.home / "sound.jinja"
    path.write_text("{{ messages[-1].content }}")
    remembered = user.home / "data" / "cerebrum" / "loaded_files.json"
    user.vouch_for_models()
    before = json.loads(remembered.read_text())
    for _ in range(2):
        done = user.run("ask", "-m", chatml_model, "--chat-template", path, "hi", "--dry-run")
        assert done.out == "hi", done.err
    assert len(json.loads(remembered.read_text())) == len(before) + 1
    path.write_text("{{ 'a' * 3 * 10 ** 9 }}")
    typed = f"/set format {path}\n"
    changed = user.run_process("chat", "-m", chatml_model, input=typed.encode(), stdin=None)
    assert "its chat template takes too much memory" in changed.err
