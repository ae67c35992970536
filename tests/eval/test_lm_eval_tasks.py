"""`cerebrum lm-eval TASK...`: local tasks on the model in the package, published figures, refusals and resuming."""

import hashlib
import json
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
from command_line import PYTHON, CommandLine, Finished
from nano.measure import MODEL_FILE
from nano.questions import held_out
from scripted_command import run_here
from waiting import wait_until

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.files import lock_file
from cerebrum_cli.eval.presets import find_preset

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of lm-eval's libraries

MODEL = ("-m", str(MODEL_FILE), "--format", "cerebrum")
SUMS = 40
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
    scored = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": 0}
    last_number = [{"function": "regex", "regex_pattern": "(-?[0-9]+)\\.?$"}, {"function": "take_first"}]
    generated = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64},
        "filter_list": [{"name": "number", "filter": last_number}],
    }
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "question"}
    write_task(directory, data, "choices", {**scored, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]})
    write_task(directory, data, "replies", {**generated, "metric_list": [{"metric": "exact_match"}]})
    write_task(directory, data, "texts", {**rolling, "metric_list": [{"metric": "bits_per_byte"}]})
    return directory


def write_task(directory: Path, data: Path, name: str, details: dict[str, Any]) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "{{question}}",
        **details,
    }
    (directory / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # which is YAML too


def yaml_of(directory: Path, name: str) -> dict[str, Any]:
    """What a task's file has besides its name."""
    task: dict[str, Any] = json.loads((directory / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in task.items() if key != "task"}


def run_tasks(command: CommandLine, tasks: Path, names: str, *arguments: str | Path) -> Finished:
    return command.run("lm-eval", *names.split(","), *MODEL, "--include-path", tasks, "--offline", *arguments)


def problem(done: Finished, code: int = 2) -> list[str]:
    """The lines of an error; the command printed nothing else."""
    assert (done.code, done.out) == (code, ""), done.err
    return done.err.splitlines()


@needs_lm_eval
def test_lm_eval_prints_its_own_table(command: CommandLine, tasks: Path) -> None:
    done = run_tasks(command, tasks, "choices,texts", "--limit", "10", "--apply-chat-template")
    assert done.code == 0, done.err
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.out.splitlines()]
    assert lines[0][:5] == ["Tasks", "Version", "Filter", "n-shot", "Metric"]
    assert [line[4] for line in lines[2:]] == ["acc", "acc_norm", "bits_per_byte"]
    assert all(0 <= float(line[6]) < 10 for line in lines[2:])
    assert not list((command.home / ".cache" / "cerebrum" / "lm-eval").iterdir())


@needs_lm_eval
def test_lm_eval_generates_in_the_models_format(command: CommandLine, tasks: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    run = run_tasks(command, tasks, "replies", "--apply-chat-template", "--log-samples", "-o", output, "--json", "-q")
    assert (run.code, run.err) == (0, "")
    assert 0.6 < run.object["results"]["replies"]["exact_match,number"] <= 1
    recorded = run.object["config"]
    assert recorded["prompt_format"] == "cerebrum" and recorded["hardware"]
    assert recorded["model_sha256"].startswith(hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest())
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert saved["config"]["use_cache"].startswith("~/") and str(command.home) not in json.dumps(saved["configs"])
    samples = saved.pop("samples")["replies"]
    assert saved == run.object and len(samples) == SUMS
    prompts, replies = [each["arguments"][0][0] for each in samples], [each["resps"][0][0] for each in samples]
    assert all(prompt.endswith("\nAI: ") for prompt in prompts)
    assert not any(reply.startswith(" ") or "\n" in reply for reply in replies)


@needs_lm_eval
def test_lm_eval_gives_tasks_the_answer_after_reasoning(command: CommandLine, tasks: Path, thinker: Path) -> None:
    def replies(*options: str) -> tuple[list[str], str]:
        output = command.home / "results.json"
        arguments = ("--include-path", tasks, "--offline", "--log-samples", "-o", output, "--restart", "--limit", "4")
        done = command.run("lm-eval", "replies", "-m", thinker, *arguments, *options)
        assert done.code == 0, done.err
        samples = json.loads(output.read_text(encoding="utf-8"))["samples"]["replies"]
        return [each["resps"][0][0] for each in samples], done.err

    chat = ("--apply-chat-template",)
    whole, notes = replies(*chat)
    assert all(text.startswith("The answer is ") for text in whole) and "thinking" not in notes
    unfinished, notes = replies(*chat, "--gen-kwargs", "max_gen_toks=9")
    assert set(unfinished) == {""} and "note: 4 of 4 replies ended while thinking" in notes
    limited, _ = replies(*chat, "--gen-kwargs", "max_gen_toks=40", "--think", "2")
    (command.config / "config.toml").write_text('think = "off"\n')
    without_reasoning, _ = replies(*chat, "--gen-kwargs", "max_gen_toks=9")
    assert [text[:13] for text in (*limited, *without_reasoning)] == ["The answer is"] * 8
    refused = command.run("lm-eval", "replies", "-m", thinker, "--include-path", tasks, "--think", "on")
    assert problem(refused)[0] == "error: --think on has no effect without --apply-chat-template"


@needs_lm_eval
def test_lm_eval_resumes_after_an_interrupt(command: CommandLine, tasks: Path, tmp_path: Path) -> None:
    cache = command.home / ".cache" / "cerebrum" / "lm-eval"
    output = tmp_path / "results.json"
    arguments = ("lm-eval", "replies", *MODEL, "--include-path", tasks, "--offline", "--log-samples", "-o", output)
    process = command.start(*arguments)
    wait_until(lambda: process.poll() is not None or any(path.stat().st_size > 8000 for path in cache.glob("*.db")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("finished before it was interrupted")
    assert process.returncode == 130, err.decode()
    assert err.decode().splitlines()[-1] == " hint: run it again to resume"
    saved = [path.stat().st_size for path in cache.iterdir()]
    assert saved and max(saved) > 8000 and not output.exists()
    [results] = cache.glob("[!.]*")
    with lock_file(cache / f".{results.name.partition('_')[0]}.lock", CerebrumError("busy", "")):
        busy = "error: another process runs lm-eval on this model with these settings"
        assert problem(command.run(*arguments), 1)[0] == busy
    resumed = command.run(*arguments)
    assert resumed.code == 0, resumed.err
    interrupted = json.loads(output.read_text())["samples"]["replies"]
    assert command.run(*arguments, "--restart").code == 0
    whole = json.loads(output.read_text())["samples"]["replies"]
    assert [each["resps"] for each in interrupted] == [each["resps"] for each in whole]
    assert not list(cache.iterdir())


@needs_lm_eval
def test_lm_eval_refuses_what_it_cannot_run(
    command: CommandLine, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks
    from lm_eval.tasks import manager

    def refused(names: str, *arguments: str | Path) -> list[str]:
        """Run in this process, which imports lm-eval once."""
        given = (*names.split(","), *MODEL, "--include-path", tasks, "--offline", *arguments)
        return problem(run_here({}, command.home, "lm-eval", *given))

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # which --offline sets
        monkeypatch.setenv(variable, "1")
    human_eval = Path(lm_eval.tasks.__file__).parent / "humaneval"
    monkeypatch.setattr(manager, "__file__", str(human_eval / "manager.py"))  # reading all its tasks takes 10 s
    assert refused("humaneval,choises") == [
        "error: lm-eval has no task 'choises'",
        " hint: did you mean choices? list all with lm_eval ls tasks",
    ]
    assert refused("choices", "--system", "Hi")[0].endswith("--system has no effect without --apply-chat-template")
    assert refused("choices", "-o", "-")[0] == "error: results cannot be written to standard output"
    (tmp_path / "old.json").write_text("mine")
    assert refused("choices", "-o", tmp_path / "old.json")[0].endswith("old.json already exists")
    write_task(tasks, tasks / "sums.jsonl", "unsafe", {**yaml_of(tasks, "choices"), "unsafe_code": True})
    assert refused("unsafe")[0] == "error: unsafe would run code that the model writes"
    assert refused("choices", "--log-samples")[1] == " hint: add -o RESULTS.json"
    (tasks / "sums.jsonl").unlink()
    message, hint = problem(run_tasks(command, tasks, "choices"), 1)
    assert message.startswith("error: cannot load choices: ") and hint == " hint: check the task and the network"


@needs_lm_eval
def test_lm_eval_needs_space_for_its_cache(command: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=1_000_000))
    done = run_tasks(command, tasks, "choices")
    assert "not enough disk space: needs 64 MB; 1 MB is free" in problem(done, 1)[0]


@needs_lm_eval
def test_lm_eval_without_a_network_repeats_no_request(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # restored when the test ends
    write_task(tmp_path, tmp_path, "remote", {"dataset_path": "owner/data", "dataset_kwargs": {}})
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = command.run("lm-eval", "remote", *MODEL, "--include-path", tmp_path, env=nowhere)
    lines = done.err.splitlines()
    assert [*lines[:2], *lines[-2:]] == [
        "note: 127.0.0.1:9: connection refused",
        "      only datasets that are already downloaded can be used",
        "error: cannot load remote: Couldn't reach 'owner/data' on the Hub (OfflineModeIsEnabled)",
        " hint: check the task and the network",
    ]


def test_lm_eval_names_the_extra_where_it_is_missing(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import of it raises ModuleNotFoundError
    assert problem(command.run("lm-eval", "arc_easy", *MODEL)) == [
        "error: lm-eval is not installed",
        f' hint: {PYTHON} -m pip install "cerebrum-cli[lm-eval]"',
    ]


def compare(values: dict[str, Any], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    from cerebrum_cli.eval.lm_eval.tasks import comparisons

    return comparisons({"results": values, "n-samples": sizes}, find_preset("collective-cognition"))


BOTH = {"acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.7, "acc_norm_stderr,none": 0.01}


@needs_lm_eval
def test_lm_eval_compares_with_published_figures() -> None:
    values: dict[str, Any] = {
        "arc_challenge": BOTH,
        "boolq": {"acc,none": 0.8, "acc_stderr,none": 0.02},
        "mine": {"acc,none": 0.8, "acc_stderr,none": 0.02},
    }
    sizes = {task: {"original": 1172, "effective": 1172} for task in values}

    def compared() -> dict[str, list[float | None]]:
        rows = compare(values, sizes)
        figures = {f"{row['task']} {row['metric']}": list(row.values())[2:] for row in rows}
        return {name: [value and round(value, 4) for value in figures] for name, figures in figures.items()}

    assert compared() == {
        "arc_challenge acc": [0.5, 0.01, 0.5401, 0.0146, -2.2698],  # 0.0401 / hypot(0.01, 0.0146)
        "arc_challenge acc_norm": [0.7, 0.01, 0.5572, 0.0145, 8.1014],
        "boolq acc": [0.8, 0.02, 0.8538, 0.0103, -2.3903],
    }
    sizes["arc_challenge"]["effective"] = 200
    values["boolq"]["acc_stderr,none"] = "N/A"
    assert [figures[4] for figures in compared().values()] == [None, None, None]
    assert compared()["boolq acc"][1] is None


@needs_lm_eval
def test_lm_eval_compares_averages_of_whole_suites() -> None:
    tasks = [condition.task for condition in find_preset("collective-cognition").averages["GPT4All"][0]]
    values: dict[str, dict[str, Any]] = {task: dict(BOTH) for task in tasks}
    sizes = {task: {"original": 1172, "effective": 1172} for task in tasks}

    def average() -> list[float | None]:
        [row] = [row for row in compare(values, sizes) if row["metric"] == "average"]
        assert row["task"] == "GPT4All"
        return [row[key] and round(row[key], 4) for key in ("value", "stderr", "published", "z")]

    mean = round((5 * 0.7 + 2 * 0.5) / 7, 4)  # acc of BoolQ and WinoGrande, as on the card
    assert average() == [mean, 0.0038, 0.7206, -12.9298]
    sizes["piqa"]["effective"] = 200
    assert average() == [mean, 0.0038, 0.7206, None]
    del values["piqa"]["acc_norm,none"]  # as in a user's own task of that name
    with pytest.raises(ValueError, match="not enough values"):
        average()


def not_reproduced(done: Finished) -> str:
    """Why a run does not reproduce a card; empty if it may."""
    assert done.code == 0, done.err
    return " ".join(done.err.partition("this run does not reproduce ")[2].split())


@needs_lm_eval
def test_lm_eval_names_other_conditions_than_the_cards(command: CommandLine, tasks: Path) -> None:
    (command.config / "config.toml").write_text('system = "Hm."\nthink = "off"\nctx = 512\n', encoding="utf-8")
    for name in ("boolq", "mmlu"):
        write_task(tasks, tasks / "sums.jsonl", name, yaml_of(tasks, "choices"))
    card = "the card of CollectiveCognition-v1-Mistral-7B: model nano, not collective-cognition-7b; --format cerebrum"
    preset = ("--preset", "collective-cognition")
    done = run_tasks(command, tasks, "boolq", *preset, "--limit", "3", "--num-fewshot", "1")
    assert not_reproduced(done) == f"{card}; --limit 3; --num-fewshot 1"
    assert "does not state whether BOS precedes a text (lm-eval of 2023 left it out" in " ".join(done.err.split())
    header, figures = (line.split()[:3] for line in done.out.splitlines()[-2:])
    assert (header, figures) == (["task", "metric", "this"], ["boolq", "acc", done.out.split()[-7]])
    explicit = ("--set", "add_bos_token=on", "--system", "Hm, so.", "--apply-chat-template", "--limit", str(SUMS))
    done = run_tasks(command, tasks, "boolq", *preset, *explicit)
    named = card.replace("; --format", "; --system 'Hm, so.'; --format")
    assert not_reproduced(done) == f"{named}; --set add_bos_token=on; --apply-chat-template"
    done = run_tasks(command, tasks, "mmlu", "--preset", "mistral-c2f", "--num-fewshot", "1")
    assert not_reproduced(done) == "the card of Mistral-C2F: model nano, not mistral-c2f-7b; --format cerebrum"
    done = run_tasks(command, tasks, "boolq", *preset, "--json")
    [row] = done.object["published"]
    assert (row["task"], row["published"], row["z"] < 0) == ("boolq", 0.8538, True)
