"""What comes with cerebrum: llama-cpp-python beyond its documentation, and the bundled model that is measured.

CONTRIBUTING.md says when to look at the first again.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from cerebrum_cli.core.llama_cpp import REQUIREMENT
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.machine import CPU_FLAGS
from scripts.nano.measure import MODEL_FILE
from scripts.nano.questions import held_out

ROOT = Path(__file__).parents[2]
CHECKED = ("0.3.36", "0.3.37")  # the version all of this was read in, and the first that may differ


def test_dependency_is_bounded_to_the_checked_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = next(each for each in project["dependencies"] if each.startswith("llama-cpp-python"))
    assert requirement == "llama-cpp-python>={},<{}".format(*CHECKED)
    assert requirement == REQUIREMENT
    assert version("llama-cpp-python") == CHECKED[0]


def test_library_states_the_cpu_features_that_are_compared() -> None:
    features = [f"ggml_cpu_has_{name.lower()}" for name in CPU_FLAGS]
    found = [name for name in features if hasattr(llama._lib, name)]
    assert found in (features, [])  # the wheel for any processor has them in the libraries that it loads later


@pytest.mark.skipif(
    Path(llama.__file__).resolve().parent.name == "cerebrum_llama", reason="the wheel for any processor has no Llama"
)
def test_llama_cpp_can_be_imported_beside_the_bindings() -> None:
    program = "from cerebrum_cli.engine.llama.bindings import llama; from llama_cpp import Llama, llama_cpp; "
    subprocess.run([sys.executable, "-c", program + "assert llama_cpp is llama"], check=True)


def run_python(program: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)


IMPORT = "import cerebrum_cli.engine.llama.bindings"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_", "GGML_NO_"))}


def test_variables_for_llama_cpp_do_not_reach_child_processes() -> None:
    listed = run_python(f"{IMPORT}, subprocess; subprocess.run(['env'])", CLEAN).stdout
    assert listed and "GOMP_SPINCOUNT" not in listed and "GGML_NO_BACKTRACE" not in listed
    own = run_python(f"{IMPORT}, subprocess; subprocess.run(['env'])", {**CLEAN, "GOMP_SPINCOUNT": "7"})
    assert "GOMP_SPINCOUNT=7" in own.stdout


def test_spin_count_is_set_while_the_library_is_loaded() -> None:
    done = run_python(IMPORT, {**CLEAN, "OMP_DISPLAY_ENV": "VERBOSE"})
    assert done.returncode == 0
    assert "GOMP_SPINCOUNT = '3000'" in done.stderr or "OPENMP" not in done.stderr  # of another OpenMP, or none


def test_failed_assertion_is_printed_without_a_debugger() -> None:
    done = run_python("from cerebrum_cli.engine.llama.bindings import llama; llama._lib.ggml_abort(b'a.c', 7, b'no')")
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "a.c:7: no\n")


# The bundled model, and the one of the tests that reasons.

NANO_SHA256 = "938b12ac45814c11d06152ed2cf7116cc51a1a9816fea7b004d0cedc23147e1d"
THINKER_SHA256 = "606a02076f4344b0202983a9d830df38bbd791b477269e3ca297c043a19bed2b"
EOS = 2


def ask(home: Path, *arguments: str) -> Any:
    done = CommandLine(home).run("ask", "-m", MODEL_FILE, "--json", *arguments)
    assert done.code == 0, done.err
    return done.object


def test_models_and_questions_are_the_measured_ones(thinker: Path) -> None:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (MODEL_FILE, thinker)]
    assert digests == [NANO_SHA256, THINKER_SHA256]
    assert hashlib.sha256(repr(held_out()).encode()).hexdigest().startswith("837cb656acd29bb8")


@pytest.mark.slow
def test_nano_follows_up_on_replies_that_end_without_the_end_token(tmp_path: Path) -> None:
    question = "What is 3 plus 4?"
    replies = [ask(tmp_path, question)]
    assert replies[0]["text"] == "3 plus 4 makes 7. The answer is 7."
    prompt = ask(tmp_path, "--dry-run", question)["token_ids"]
    next_prompt = ask(tmp_path, "-c", "--dry-run", "Double it.")["token_ids"]
    assert next_prompt[: len(prompt)] == prompt and EOS not in next_prompt
    replies += [ask(tmp_path, "-c", question) for question in ("Double it.", "And if you add 5 to that?")]
    assert [reply["final_answer"] for reply in replies] == ["7", "14", "19"]
    assert {reply["finish_reason"] for reply in replies} == {"stop"}
