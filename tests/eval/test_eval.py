"""`cerebrum eval` and `cerebrum runs` on the model in the package: reports, growth, kills, refusals and comparisons."""

import hashlib
import json
import re
import signal
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from batch_files import stored_lines
from command_line import CommandLine, Finished, assert_error
from tiny_models import write_chatml
from waiting import wait_until

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.row_events import SHOWN_ERRORS
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.engine.machine import processor_name
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.questions import SAMPLE_KEYS
from cerebrum_cli.eval.scorers import SCORING_VERSION
from cerebrum_cli.formats.prompt_format import CEREBRUM
from scripts.nano.measure import MODEL_FILE, loaded_engine
from scripts.nano.questions import held_out

pytestmark = pytest.mark.slow

MODEL = ("-m", str(MODEL_FILE), "--format", "cerebrum")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Forty of nano's held-out sums."""
    rows = [{"question": turns[0], "answer": answer} for turns, answer in held_out()[:40]]
    return write_questions(tmp_path / "sums.jsonl", rows)


def write_questions(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def run_eval(command: CommandLine, source: Path | str, *arguments: str | Path) -> Finished:
    return command.run("eval", source, *MODEL, "--json", *arguments)


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(f"{run}.meta.json").read_text(encoding="utf-8"))
    return record


def problem(done: Finished) -> str:
    """The first line of an error; the command printed nothing else."""
    assert done.code == 2, done.err
    assert done.out == ""
    return done.err.splitlines()[0]


def test_bundled_model_answers_the_bundled_questions(command: CommandLine, tmp_path: Path) -> None:
    done = command.run("eval", "sums", "-m", "nano", "--limit", "8", "--json", "-o", tmp_path / "run.jsonl")
    assert (done.object["task"], done.object["model"], done.object["n"]) == ("sums", "nano", 8)
    assert done.object["accuracy"] >= 0.75


def test_eval_reports_accuracy_and_saves_each_sample(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    done = run_eval(command, sums, "--limit", "10", "-o", run)
    assert done.code == 0, done.err
    report, samples = done.object, samples_of(run)
    assert (report["task"], report["n"], report["samples"]) == ("sums", 10, 1)
    assert report["accuracy"] == sum(sample["correct"] for sample in samples) / 10
    assert 0 <= report["interval"][0] <= report["accuracy"] <= report["interval"][1] <= 1
    assert set(report["maj"]) == set(report["pass_at"]) == {"1"}
    assert (report["no_answer"], report["cut_off"], report["tokens_per_answer"] > 5) == (0, 0, True)
    assert all(tuple(sample) == (*SAMPLE_KEYS, "basis", "lowest_window", "key") for sample in samples)
    ids = [sample["id"] for sample in samples]
    assert ids != sorted(ids)  # a random subset, not the first lines
    assert [sample["correct"] for sample in samples] == [sample["answer"] == sample["reference"] for sample in samples]
    assert all(0 < sample["probability"] <= 1 and sample["finish_reason"] == "stop" for sample in samples)
    short = run_eval(command, sums, "--limit", "4", "--max-tokens", "6", "-o", tmp_path / "short.jsonl").object
    assert (short["accuracy"], short["no_answer"], short["cut_off"]) == (0.0, 0.0, 1.0)
    finished = {(sample["answer"], sample["finish_reason"]) for sample in samples_of(tmp_path / "short.jsonl")}
    assert finished == {(None, "length")}


def test_eval_saves_the_confidence_of_each_sample(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    assert run_eval(command, sums, "--samples", "4", "--limit", "4", "--temperature", "1.5", "-o", run).code == 0
    texts = [turns[0] for turns, _ in held_out()]
    lengths = set()
    with loaded_engine(MODEL_FILE) as engine:
        for sample in samples_of(run):
            prompt = CEREBRUM.render(Conversation().user(texts[sample["id"] - 1]))
            logprobs = token_logprobs(engine, engine.vocabulary.tokenize(prompt), sample["text"])
            windows = [logprobs[at : at + 16] for at in range(max(1, len(logprobs) - 15))]
            assert sample["probability"] == pytest.approx(exp(mean(logprobs)), abs=1e-3)
            assert sample["lowest_window"] == pytest.approx(min(exp(mean(window)) for window in windows), abs=1e-3)
            lengths.add(len(windows))
    assert min(lengths) == 1 < max(lengths)


def token_logprobs(engine: LocalEngine, prompt: Sequence[int], text: str) -> list[float]:
    """Log probability of each token of a reply, scored one by one."""
    tokens = engine.vocabulary.tokenize((Text(text),))[1:]  # without BOS
    requests = [ScoreRequest((*prompt, *tokens[:at]), (tokens[at : at + 1],)) for at in range(len(tokens))]
    scores = {event.request: event.scores[0] for event in engine.score(requests) if isinstance(event, LogprobScores)}
    return [scores[at].logprob_sum for at in range(len(tokens))]


def test_larger_limit_and_samples_extend_a_run(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    sampled = ("--temperature", "0.8", "-o")
    assert run_eval(command, sums, "--limit", "10", *sampled, run).code == 0
    first, notes = samples_of(run), record_of(run)["notes"]
    assert notes["timed_samples"] == 10
    more = ("--limit", "20", "--samples", "2", *sampled)
    done = run_eval(command, sums, *more, run)
    assert f"20 of 20 questions done, accuracy {done.object['accuracy']:.3f} (" in done.err
    assert (done.object["samples"], samples_of(run)[:20:2]) == (2, first)
    assert record_of(run)["notes"]["timed_samples"] == 40
    assert record_of(run)["notes"]["seconds"] > notes["seconds"]
    assert run_eval(command, sums, *more, whole).code == 0
    assert [sample["text"] for sample in samples_of(run)] == [sample["text"] for sample in samples_of(whole)]
    assert len({sample["seed"] for sample in samples_of(run)}) == 40


def test_interrupted_eval_tells_how_to_resume(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    process = command.start("eval", sums, *MODEL, "--samples", "64", "-q", "-o", run)
    wait_until(lambda: process.poll() is not None or bool(stored_lines(Path(f"{run}.partial"))))
    for second in (run_eval(command, sums, "--samples", "64", "-o", run), command.run("runs", "rm", "-y", run)):
        assert_error(second, 1, "another process is writing run.jsonl")
    assert command.run("runs", "show", run).code == 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert f"of 2560 samples done, saved in {run}.partial; run it again to resume" in err.decode()
    saved = [json.loads(line) for line in stored_lines(Path(f"{run}.partial"))]
    assert {sample["finish_reason"] for sample in saved} == {"stop"}  # none that the signal has cut off
    assert record_of(run)["notes"]["timed_samples"] == len(saved)
    refused = run_eval(command, sums, "--samples", "2", "-o", run)
    assert_error(refused, 1, f"{run} already has more samples (64, now 2)")
    smaller = run_eval(command, sums, "--samples", "2", "--limit", "3", "--restart", "-o", run)
    assert (smaller.object["n"], smaller.object["samples"], len(samples_of(run))) == (3, 2, 6)
    assert record_of(run)["fingerprint"]["temperature"] == 0.7  # of several samples
    greedy = run_eval(command, sums, "--samples", "2", "--temperature", "0", "-o", tmp_path / "other.jsonl")
    assert problem(greedy) == "error: --samples needs a temperature above 0: at 0 all samples are the same"
    assert command.run("runs", "rm", "-y", run).code == 0
    assert list(tmp_path.glob("run*")) == []


def test_too_long_question_does_not_count(command: CommandLine, tmp_path: Path) -> None:
    too_long = [{"question": "What is 3 plus 4? " * count, "answer": 7} for count in range(500, 505)]
    source = write_questions(tmp_path / "few.jsonl", [{"question": "What is 3 plus 4?", "answer": 7}, *too_long])
    done = run_eval(command, source, "--ctx", "256", "-o", tmp_path / "run.jsonl")
    assert (done.code, done.object["n"], done.object["skipped"]) == (6, 1, 5)
    assert done.err.count(" skipped: the prompt has") == SHOWN_ERRORS
    assert re.search(r"\n6 of 6 questions done, accuracy \d.\d{3} \(.*\), 5 skipped", done.err)
    shown = command.run("runs", "show", tmp_path / "run.jsonl").out
    assert "samples skipped" in shown and "accuracy, skipped as wrong" in shown
    all_questions = done.object["accuracy"] / 6
    assert done.object["accuracy_with_skipped"] == pytest.approx(all_questions)
    source = write_questions(tmp_path / "none.jsonl", too_long[:1])
    for _ in range(2):  # taken, and complete already
        done = run_eval(command, source, "--ctx", "256", "-q", "-o", tmp_path / "none.out")
        assert (done.code, done.out) == (6, "")
        assert done.err.startswith("error: no sample of none.out counts: the prompt has ")
    assert problem(command.run("runs", "show", tmp_path / "none.out")).startswith("error: no sample of none.out counts")


def test_dry_run_estimates_the_whole_run_and_what_is_missing(command: CommandLine, sums: Path) -> None:
    done = command.run("eval", sums, *MODEL, "--limit", "20", "--samples", "2", "--dry-run")
    assert (done.code, done.out.endswith("\nAI:")) == (0, True), done.err
    assert "20 of 40 questions, 2 samples each" in done.err and "time unknown" in done.err
    assert not (command.home / "data" / "cerebrum" / "runs").exists()
    assert run_eval(command, sums, "--limit", "10").code == 0
    assert run_eval(command, sums, "--limit", "2", "-o", "sums-nano").object["n"] == 2  # a path, not the stored run
    run = command.home / "data" / "cerebrum" / "runs" / "sums-nano.jsonl"
    record = record_of(run)
    record["notes"] |= {"seconds": 600.0, "timed_samples": 10}  # a minute each
    Path(f"{run}.meta.json").write_text(json.dumps(record), encoding="utf-8")
    for arguments, missing in ((("--limit", "12"), 2), (("--limit", "10"), 0), (("--limit", "9", "--restart"), 9)):
        preview = run_eval(command, sums, *arguments, "--dry-run").object
        assert (preview["missing_samples"], preview["missing_seconds"]) == (missing, missing * 60)
        assert (preview["total_samples"], preview["seconds"]) == (int(arguments[1]), int(arguments[1]) * 60)
    shown = command.run("eval", sums, *MODEL, "--limit", "12", "--dry-run").err
    assert shown.endswith("\n2 of 12 samples to generate, about 2:00\n")
    refused = run_eval(command, sums, "--limit", "9", "--dry-run")
    assert (refused.code, refused.err.splitlines()[0]) == (1, f"error: {run} already has more questions (10, now 9)")
    assert not Path(f"{run}.partial").exists()


def test_run_records_what_it_depends_on_without_the_home_directory(command: CommandLine, sums: Path) -> None:
    model = command.home / "mine.gguf"
    model.write_bytes(MODEL_FILE.read_bytes())
    arguments = ("eval", sums, "-m", model, "--format", "cerebrum", "-o", "run.jsonl")
    assert command.run(*arguments, "--limit", "2").code == 0
    run = command.home / "run.jsonl"
    record = record_of(run)
    assert str(command.home) not in Path(f"{run}.meta.json").read_text(encoding="utf-8")
    assert record["notes"]["reference"] == "~/mine.gguf"
    data = model.read_bytes()
    assert record["fingerprint"]["model file"] == f"{hashlib.sha256(data).hexdigest()} {len(data)}"
    [conditions] = record["notes"]["conditions"]
    assert conditions["hardware"].startswith(processor_name()) and conditions["threads"] == 1
    assert (conditions["GPU layers"], conditions["slots"], conditions["flash attention"]) == (0, 2, "auto")


def test_examples_precede_each_question(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    example = {"question": "One?", "answer": "1 + 0 = 1\n#### 1"}
    examples = write_questions(tmp_path / "shown.jsonl", [example, {"question": "Two?"}])
    refused = run_eval(command, sums, "--examples", examples)
    assert problem(refused) == f"error: {examples}, line 2: no `answer`; the fields are: question"
    write_questions(examples, [example])
    done = command.run("eval", sums, *MODEL, "--limit", "2", "--examples", examples, "--dry-run")
    assert "User: One?\nAI: 1 + 0 = 1\n#### 1\nUser: " in done.out, done.out
    assert "1 example before each question" in done.err
    first = run_eval(command, sums, "--limit", "2", "--examples", examples).object
    examples.write_text(examples.read_text().replace("1 + 0", "0 + 1"))
    done = command.run("eval", sums, *MODEL, "--limit", "2", "--examples", examples)
    assert "was made with other settings: example file" in done.err and first["n"] == 2


def test_raw_needs_no_template(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    base = write_chatml(tmp_path / "base.gguf", chat_template=None)
    examples = write_questions(tmp_path / "shown.jsonl", [{"question": "Q: 1 + 0?\nA:", "answer": "1 + 0 = 1\n#### 1"}])
    arguments = ("eval", sums, "-m", base, "--limit", "2", "--examples", examples, "-n", "4")
    assert "add --raw to ask or eval" in command.run(*arguments).err
    shown = command.run(*arguments, "--raw", "--dry-run")
    assert shown.out.startswith("Q: 1 + 0?\nA: 1 + 0 = 1\n#### 1\n\n")
    assert command.run(*arguments, "--raw", "--json").object["n"] == 2
    refused = command.run(*arguments, "--raw", "--samples", "2", "--check", "python")
    assert problem(refused) == "error: --check and --raw cannot be used together"


def test_runs_of_two_models_are_compared(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(MODEL_FILE.read_bytes())
    for model in (MODEL_FILE, other):
        assert command.run("eval", sums, "-m", model, "--format", "cerebrum", "--limit", "10").code == 0
    names = sorted(row["name"] for row in command.run("runs", "list", "--json").object)
    compared = command.run("runs", "compare", *names, "--json").object
    assert (compared["n"], compared["flips"], compared["p_value"]) == (10, 0, 1.0)


@pytest.fixture
def other_rules(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this a copy of the program with other rules of scoring, newer by a number of versions."""
    return lambda by: monkeypatch.setattr(scorers, "SCORING_VERSION", SCORING_VERSION + by)


def test_run_is_opened_with_other_rules_of_scoring(
    command: CommandLine, sums: Path, tmp_path: Path, other_rules: Callable[[int], None]
) -> None:
    run, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    now = SCORING_VERSION + 1
    assert run_eval(command, sums, "--limit", "4", "-o", run).code == 0
    other_rules(1)
    scored = f"run was scored by rules version {SCORING_VERSION}"
    hint = f"score it again: cerebrum runs show {run} --rescore --save\n"
    shown = command.run("runs", "show", run)
    assert shown.code == 0 and f"note: {scored}, not rules version {now}\n      {hint}" in shown.err, shown.err
    assert command.run("runs", "show", run, "--json").object["scoring"] == str(SCORING_VERSION)
    assert record_of(run)["fingerprint"]["prompt"].endswith("\nUser: {question}\nAI:")
    assert run_eval(command, sums, "--limit", "4", "-o", other).code == 0
    compared = command.run("runs", "compare", run, other)
    assert_error(compared, 2, f"{scored}, not rules version {now}", hint.rstrip())
    before = run.read_bytes()
    for arguments in (("--limit", "6"), ("--limit", "6", "--dry-run")):
        refused = run_eval(command, sums, *arguments, "-o", run)
        difference = f"was made with other settings: scoring ({SCORING_VERSION}, now {now})"
        assert_error(refused, 1, f"{run} {difference}", "use --restart to replace it, or choose another -o")
    assert run.read_bytes() == before
    assert command.run("runs", "show", run, "--rescore", "--save").code == 0
    assert run_eval(command, sums, "--limit", "6", "-o", run).object["n"] == 6
    assert command.run("runs", "show", run, "-q").err == ""
