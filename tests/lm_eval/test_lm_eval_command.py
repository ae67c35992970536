"""`cerebrum lm-eval`: local tasks on the model in the package, by the command line of lm-eval."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cases
import pytest
from command_line import PYTHON, CommandLine, Finished, assert_error, start_python
from guard import Guard
from waiting import wait_until

from scripts.nano.measure import MODEL_FILE
from scripts.nano.questions import held_out

pytestmark = pytest.mark.slow

MODEL = ("-m", str(MODEL_FILE), "--format", "cerebrum")
SUMS = 40
OWN_DIRECTORIES = ("config/cerebrum", "data/cerebrum", ".cache/cerebrum", ".cache/huggingface")
RUN = """
import sys
from cerebrum_cli.__main__ import main
from cerebrum_cli.lm_eval import lm_eval_command

register, (file, *arguments) = lm_eval_command.register, sys.argv[1:]

def register_without_tasks(*values):
    from lm_eval.tasks import manager
    manager.__file__ = file  # reading all of lm-eval's own tasks takes 10 s
    register(*values)

lm_eval_command.register = register_without_tasks
sys.argv = ["cerebrum", *arguments]
main()
"""
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm-eval")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with tasks over nano's held-out sums: `choices` are scored, `replies` generated, `texts` rolling."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    data = directory / "sums.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for turns, answer in held_out()[:SUMS]:
            choices = [f"The answer is {int(answer) + plus}." for plus in (0, 1, 7)]
            file.write(json.dumps({"question": turns[0], "answer": answer, "choices": choices}) + "\n")
    for task in cases.rows("lm_eval_tasks"):
        task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        (directory / f"{task['task']}.yaml").write_text(json.dumps(task), encoding="utf-8")  # which is YAML too
    return directory


def start(
    command: CommandLine, tasks: Path, names: str, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Run tasks of a directory in a child process."""
    command.vouch_for_models()
    given = ("lm-eval", *MODEL, "--tasks", names, *arguments)
    return start_python(RUN, tasks / "manager.py", *given, home=command.home, env=env)


def finished(process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=120)
    return Finished(process.returncode, out, err)


def samples_of(directory: Path, task: str) -> list[dict[str, Any]]:
    [path] = directory.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


@needs_lm_eval
def test_lm_eval_runs_tasks_and_saves_their_results(
    command: CommandLine, tasks: Path, tmp_path: Path, guard_library: Path | None
) -> None:
    directories = [*(command.home / name for name in OWN_DIRECTORIES), tmp_path / "results"]
    guard = Guard(guard_library, tmp_path / "guard", directories)
    options = ("--apply_chat_template", "--log_samples", "--output_path", tmp_path / "results")
    done = finished(start(command, tasks, "choices,texts,replies", *options, env=guard.environment))
    assert done.code == 0, done.err
    assert guard.violations() == []
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.out.splitlines()[1:]]
    assert lines[0][:5] == ["Tasks", "Version", "Filter", "n-shot", "Metric"]
    values = {line[4]: float(line[6]) for line in lines[2:] if len(line) > 6}
    assert [*values] == ["acc", "acc_norm", "exact_match", "bits_per_byte"]
    assert 0 <= values["acc"] <= 1 and 0.6 < values["exact_match"] <= 1 and 0 < values["bits_per_byte"] < 10
    [results] = (tmp_path / "results").rglob("results_*.json")
    recorded = json.loads(results.read_text(encoding="utf-8"))["config"]
    assert recorded["prompt_format"] == "cerebrum" and recorded["hardware"]
    assert recorded["model_sha256"].startswith(hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest())
    replies = [sample["resps"][0][0] for sample in samples_of(results.parent, "replies")]
    assert len(replies) == SUMS and not any(reply.startswith(" ") or "\n" in reply for reply in replies)


@needs_lm_eval
def test_lm_eval_resumes_from_its_own_cache(command: CommandLine, tasks: Path, tmp_path: Path) -> None:
    def start_with(cache: str) -> subprocess.Popen[str]:
        output = ("--log_samples", "--output_path", tmp_path / f"of-{cache}")
        return start(command, tasks, "replies", "--use_cache", tmp_path / cache, *output)

    process = start_with("interrupted")
    wait_until(lambda: process.poll() is not None or holds_results(tmp_path, "interrupted"))
    process.send_signal(signal.SIGINT)
    done = finished(process)
    if done.code == 0:
        pytest.skip("finished before it was interrupted")
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert holds_results(tmp_path, "interrupted") and not (tmp_path / "of-interrupted").exists()
    replies = {}
    for cache in ("interrupted", "new"):
        assert finished(start_with(cache)).code == 0
        replies[cache] = [sample["resps"] for sample in samples_of(tmp_path / f"of-{cache}", "replies")]
    assert replies["interrupted"] == replies["new"]


def holds_results(directory: Path, cache: str) -> bool:
    return any(path.stat().st_size > 8000 for path in directory.glob(f"{cache}*.db"))


@needs_lm_eval
@pytest.mark.parametrize(
    ("names", "code", "problem"),
    [("choises", 2, "Tasks not found: choises"), ("choices", 1, "sums.jsonl")],
    ids=["unknown task", "missing data"],
)
def test_lm_eval_error_takes_one_line(command: CommandLine, tasks: Path, names: str, code: int, problem: str) -> None:
    (tasks / "sums.jsonl").unlink()
    assert_error(finished(start(command, tasks, names)), code, "error: lm-eval: ", problem)


def test_lm_eval_names_the_extra_where_it_is_missing(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import of it raises ModuleNotFoundError
    done = command.run("lm-eval", *MODEL, "--tasks", "arc_easy")
    assert_error(done, 2, "lm-eval is not installed", f'{PYTHON} -m pip install "cerebrum-cli[lm-eval]"')


def test_lm_eval_looks_for_the_model_first(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise AssertionError('it is imported')")
    arguments = ("lm-eval", "-m", "nothing", "--offline", "--tasks", "arc_easy")
    done = command.run_process(*arguments, env={"PYTHONPATH": str(tmp_path)})
    assert_error(done, 3, "unknown model 'nothing'")
