"""`cerebrum eval` and `cerebrum runs` on the model in the package: reports, growth, kills, refusals and comparisons."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from batch_files import complete_lines
from command_line import CommandLine, Finished, assert_error
from dataset_files import COMMIT, cache_dataset, table
from nano.measure import MODEL_FILE, loaded_engine
from nano.questions import held_out
from waiting import wait_until

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.row_events import SHOWN_ERRORS
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.scoring import LogprobScores, ScoreRequest
from cerebrum_cli.eval import scorers
from cerebrum_cli.eval.questions import SAMPLE_KEYS
from cerebrum_cli.eval.scorers import SCORING_VERSION
from cerebrum_cli.eval.tasks import SUMS
from cerebrum_cli.formats.plain import CEREBRUM

pytestmark = pytest.mark.slow

MODEL = ("-m", str(MODEL_FILE), "--format", "cerebrum")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Forty of nano's held-out sums."""
    return write_questions(
        tmp_path / "sums.jsonl", [{"question": turns[0], "answer": answer} for turns, answer in held_out()[:40]]
    )


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


def test_bundled_questions_are_those_held_out() -> None:
    rows = [json.loads(line) for line in SUMS.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"question": turns[0], "answer": answer} for turns, answer in held_out()]


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
    assert all(tuple(sample) == (*SAMPLE_KEYS, "lowest_window") for sample in samples)
    ids = [sample["id"] for sample in samples]
    assert ids != sorted(ids)  # a random subset, not the first lines
    assert [sample["correct"] for sample in samples] == [sample["answer"] == sample["gold"] for sample in samples]
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
    older = [{key: value for key, value in sample.items() if key != "lowest_window"} for sample in samples_of(run)]
    write_questions(run, older)
    assert command.run("runs", "show", run, "--json").object["samples"] == 4


def token_logprobs(engine: LocalEngine, prompt: Sequence[int], text: str) -> list[float]:
    """Log probability of each token of a reply, scored one by one."""
    tokens = engine.vocabulary.tokenize((Text(text),))[1:]  # without BOS
    requests = [ScoreRequest((*prompt, *tokens[:at]), (tokens[at : at + 1],)) for at in range(len(tokens))]
    scores = {event.request: event.scores[0] for event in engine.score(requests) if isinstance(event, LogprobScores)}
    return [scores[at].logprob_sum for at in range(len(tokens))]


def test_larger_limit_and_samples_extend_a_run(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    sampled = ("--temperature", "0.8", "-o")
    assert run_eval(command, sums, "--limit", "20", *sampled, run).code == 0
    first, notes = samples_of(run), record_of(run)["notes"]
    assert notes["timed_samples"] == 20
    done = run_eval(command, sums, "--samples", "2", *sampled, run)
    assert f"40 of 40 questions done, accuracy {done.object['accuracy']:.3f} (" in done.err
    assert (done.object["samples"], samples_of(run)[:40:2]) == (2, first)
    assert record_of(run)["notes"]["timed_samples"] == 80
    assert record_of(run)["notes"]["seconds"] > notes["seconds"]
    assert run_eval(command, sums, "--samples", "2", *sampled, whole).code == 0
    assert [sample["text"] for sample in samples_of(run)] == [sample["text"] for sample in samples_of(whole)]
    assert len({sample["seed"] for sample in samples_of(run)}) == 80


def test_changed_run_is_refused_and_the_change_named(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    run_eval(command, sums, "--limit", "4", "-o", run)
    before = run.read_bytes()
    for arguments, difference in (
        (("--limit", "4", "--temperature", "0.5"), "another temperature (0.0, now 0.5)"),
        (("--limit", "4", "--match", "exact"), "another match (answer, now exact)"),
        (("--limit", "4", "--template", "{question}"), "another template (none, now {question})"),
        (("--limit", "4", "--set", "batch_invariant=on"), "another batch invariance (none, now all types)"),
        (("--limit", "3"), "already has more questions (4, now 3)"),
    ):
        done = run_eval(command, sums, *arguments, "-o", run)
        assert done.code == 1
        assert difference in done.err.splitlines()[0]
    assert run.read_bytes() == before


def test_interrupted_eval_tells_how_to_resume(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    process = command.start("eval", sums, *MODEL, "--samples", "64", "-q", "-o", run)
    wait_until(lambda: process.poll() is not None or bool(complete_lines(Path(f"{run}.partial"))))
    for second in (run_eval(command, sums, "--samples", "64", "-o", run), command.run("runs", "rm", "-y", run)):
        assert_error(second, 1, "another process is writing run.jsonl")
    assert command.run("runs", "show", run).code == 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"of 2560 samples done; run it again to resume" in err
    saved = [json.loads(line) for line in complete_lines(Path(f"{run}.partial"))]
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


def test_bad_rows_are_named_and_not_counted(command: CommandLine, tmp_path: Path) -> None:
    rows = [{"question": "What is 3 plus 4?", "answer": 7}, "{", {"question": "What is 2 plus 2?"}]
    done = run_eval(command, write_questions(tmp_path / "few.jsonl", rows), "-o", tmp_path / "run.jsonl")
    assert done.code == 6
    assert (done.object["n"], done.object["accuracy"], done.object["bad_rows"]) == (1, 1.0, 2)
    assert "line 2" in done.err and "line 3" in done.err
    many = write_questions(tmp_path / "many.jsonl", [rows[0], *["{"] * 12])
    done = command.run("eval", many, *MODEL, "-o", tmp_path / "many.out")
    assert (done.code, "more lines skipped" in done.err) == (6, True)
    assert ["invalid", "rows", "12"] in [line.split() for line in done.out.splitlines()]


def test_too_long_question_does_not_count(command: CommandLine, tmp_path: Path) -> None:
    too_long = [{"question": "What is 3 plus 4? " * count, "answer": 7} for count in range(500, 505)]
    source = write_questions(tmp_path / "few.jsonl", [{"question": "What is 3 plus 4?", "answer": 7}, *too_long])
    done = run_eval(command, source, "--ctx", "256", "-o", tmp_path / "run.jsonl")
    assert (done.code, done.object["n"], done.object["skipped"]) == (6, 1, 5)
    assert done.err.count(" skipped: the prompt has") == SHOWN_ERRORS
    assert re.search(r"\n6 of 6 questions done, accuracy \d.\d{3} \(.*\), 5 skipped", done.err)
    assert "samples skipped" in command.run("runs", "show", tmp_path / "run.jsonl").out
    source = write_questions(tmp_path / "none.jsonl", too_long[:1])
    for _ in range(2):  # taken, and complete already
        done = run_eval(command, source, "--ctx", "256", "-q", "-o", tmp_path / "none.out")
        assert (done.code, done.out) == (6, "")
        assert done.err.startswith("error: no sample of none.out counts: the prompt has at least")
    assert problem(command.run("runs", "show", tmp_path / "none.out")).startswith("error: no sample of none.out counts")


def test_reply_that_takes_years_to_search_does_not_count(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "SEARCH_S", 2.0)
    slow = r"(.|\s|\S)+\Z!"
    rows = [{"question": f"Add {number} and 30.", "answer": slow} for number in range(12, 22)]
    rows.append({"question": "Add 1 and 30.", "answer": r"\d"})
    start = time.monotonic()
    done = run_eval(command, write_questions(tmp_path / "sums.jsonl", rows), "--match", "regex")
    assert time.monotonic() - start < 15.0  # one search, not ten
    assert (done.code, done.object["n"], done.object["skipped"]) == (6, 1, 10)
    assert f" skipped: searching a reply for {slow} takes over 2 s" in done.err


def test_preset_sets_and_states_its_condition(command: CommandLine, tmp_path: Path) -> None:
    row = {"problem": "What is 3 plus 4?", "answer": "7", "unique_id": "sum/1"}
    cache_dataset(command.home, "HuggingFaceH4/MATH-500", "test.jsonl", json.dumps(row).encode())
    settings = (
        "temperature = 0.9\nsystem = 'Hm.'\nrepeat_penalty = 1.5\nlogit_bias = ['7=-1']\nthink = 'on'\nctx = 512\n"
    )
    (command.config / "config.toml").write_text(settings, encoding="utf-8")
    run = tmp_path / "run.jsonl"
    done = run_eval(command, "math500", "--preset", "cerebrum-7b", "--offline", "-o", run)
    assert (done.code, done.object["task"], done.object["n"]) == (0, "math500", 1)
    found = record_of(run)["fingerprint"]
    assert (found["temperature"], samples_of(run)[0]["id"]) == (0.0, "sum/1")
    assert [found[key] for key in ("system", "repeat penalty", "logit bias", "think")] == [None, 1.0, [], None]
    assert found["ctx"] == 512
    shown = command.run("runs", "show", run).err
    for remark in (
        f"dataset HuggingFaceH4/MATH-500, test.jsonl at commit {COMMIT}",
        "scores are not comparable",
        "preset cerebrum-7b: MATH, zero-shot, temperature 0",
        "the card of Cerebrum-1.0-7b does not state how answers are extracted from replies",
    ):
        assert remark in shown
    options = ("--temperature", "0.5", "--set", "presence_penalty=1", "--system", "Hm.", "--limit", "1")
    other = tmp_path / "other.jsonl"
    assert run_eval(command, "math500", "--preset", "cerebrum-7b", "--offline", *options, "-o", other).code == 0
    assert record_of(other)["fingerprint"]["temperature"] == 0.5
    shown = " ".join(command.run("runs", "show", other).err.split())
    named = "--system Hm.; --format cerebrum; --temperature 0.5; --set presence_penalty=1; --limit 1"
    card = f"the card of Cerebrum-1.0-7b: model {MODEL_FILE.stem}, not cerebrum-7b"
    assert f"this run does not reproduce {card}; {named}" in shown


def test_preset_sets_the_number_of_samples(command: CommandLine) -> None:
    rows = [{"question": "What is 3 plus 4?", "answer": "#### 7"}]
    cache_dataset(command.home, "openai/gsm8k", "main/test-00000-of-00001.parquet", table(rows))
    arguments = ("gsm8k", "--preset", "cerebrum-8x7b", "--offline", "--dry-run")
    assert run_eval(command, *arguments).object["total_samples"] == 8
    assert run_eval(command, *arguments, "--samples", "2").object["total_samples"] == 2
    greedy = run_eval(command, "gsm8k", "--preset", "cerebrum-7b", "--offline", "--samples", "2")
    assert problem(greedy) == "error: --samples needs a temperature above 0, but preset cerebrum-7b sets 0"


def test_choices_are_listed_and_letters_compared(command: CommandLine, tmp_path: Path) -> None:
    row = {"question": "Which is a color?", "choices": ["seven", "red"], "answer": "red", "cluster": "colors"}
    source = write_questions(tmp_path / "few.jsonl", [row])
    preview = run_eval(command, source, "--dry-run").object
    assert "Which is a color?\n\nA) seven\nB) red\n\n" in preview["prompt"]
    assert preview["gold"] == "B"
    done = run_eval(command, source, "-o", tmp_path / "run.jsonl")
    [sample] = samples_of(tmp_path / "run.jsonl")
    assert (sample["gold"], sample["choices"], sample["cluster"]) == ("B", ["seven", "red"], "colors")
    assert done.object["chance"] == 0.5
    assert "guessing" in command.run("runs", "show", tmp_path / "run.jsonl").out
    index = write_questions(tmp_path / "index.jsonl", [{**row, "answer": 1, "choices": ["seven", "red", "blue"]}])
    assert "answer indices are assumed to start at 0" in command.run("eval", index, *MODEL, "--dry-run").err


def test_dry_run_proposes_contains_for_answers_in_words(command: CommandLine, tmp_path: Path) -> None:
    rows = [{"question": "Where is it?", "answer": answer} for answer in ("Paris", "the Pacific Ocean", "7")]
    source = write_questions(tmp_path / "words.jsonl", rows)
    assert "--match contains accepts them" in command.run("eval", source, *MODEL, "--dry-run").err
    assert "--match" not in command.run("eval", source, *MODEL, "--dry-run", "--match", "contains").err


def test_dry_run_estimates_the_whole_run_and_what_is_missing(command: CommandLine, sums: Path) -> None:
    done = command.run("eval", sums, *MODEL, "--limit", "20", "--samples", "2", "--dry-run")
    assert (done.code, done.out.endswith("\nAI:")) == (0, True), done.err
    assert "20 of 40 questions, 2 samples each" in done.err and "about 0:" in done.err
    assert not (command.home / "data" / "cerebrum" / "runs").exists()
    assert run_eval(command, sums, "--limit", "10").code == 0
    assert run_eval(command, sums, "--limit", "2", "-o", "sums-nano").object["n"] == 2  # a path, not the stored run
    run = command.home / "data" / "cerebrum" / "runs" / "sums-nano.jsonl"
    record = record_of(run)
    record["notes"] = {"seconds": 600.0, "timed_samples": 10}  # a minute each
    Path(f"{run}.meta.json").write_text(json.dumps(record), encoding="utf-8")
    for arguments, missing in ((("--limit", "12"), 2), (("--limit", "10"), 0), (("--limit", "9", "--restart"), 9)):
        preview = run_eval(command, sums, *arguments, "--dry-run").object
        assert (preview["missing_samples"], preview["missing_seconds"]) == (missing, missing * 60)
        assert (preview["total_samples"], preview["seconds"]) == (int(arguments[1]), int(arguments[1]) * 60)
    shown = command.run("eval", sums, *MODEL, "--limit", "12", "--dry-run").err
    assert shown.endswith(
        "\n10 of 12 samples already in the run\n"
        "about 12:00 for the whole run, based on run sums-nano\n"
        "about 2:00 for the 2 missing samples\n"
    )
    shown = command.run("eval", sums, *MODEL, "--limit", "10", "--dry-run").err
    assert shown.endswith("\nabout 10:00 for the whole run, based on run sums-nano\nnothing to generate\n")
    refused = run_eval(command, sums, "--limit", "9", "--dry-run")
    assert (refused.code, refused.err.splitlines()[0]) == (1, f"error: {run} already has more questions (10, now 9)")
    assert not Path(f"{run}.partial").exists()


def test_runs_are_stored_listed_shown_compared_and_deleted(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(MODEL_FILE.read_bytes())
    for model in (MODEL_FILE, other):
        assert command.run("eval", sums, "-m", model, "--format", "cerebrum", "--limit", "10").code == 0
    assert command.run("eval", sums, *MODEL, "--limit", "12").code == 0  # extends the first
    rows = command.run("runs", "list", "--json").object
    names = sorted(row["name"] for row in rows)
    assert len(names) == 2
    assert sorted(row["n"] for row in rows) == [10, 12]
    assert problem(command.run("runs", "show", names[0], "--plot", "plot.gif")).startswith("error: --plot plot.gif")
    assert problem(command.run("runs", "show", names[0], "--run-code")) == "error: --run-code requires --rescore"
    shown = command.run("runs", "show", names[0])
    assert shown.code == 0
    assert "accuracy" in shown.out and "95% interval" in shown.out
    unequal = command.run("runs", "compare", *names).out
    assert unequal.startswith("sums: nano and other, 10 questions; the runs differ in number of questions (1")
    assert command.run("eval", sums, "-m", other, "--format", "cerebrum", "--limit", "12").code == 0
    compared = command.run("runs", "compare", *names, "--json").object
    assert (compared["n"], compared["flips"], compared["p_value"]) == (12, 0, 1.0)
    pair = command.run("runs", "compare", *names).out
    assert "no significant difference" in pair and "\nright to wrong  " in pair
    assert command.run("eval", sums, *MODEL, "--limit", "2", "--samples", "2", "-o", tmp_path / "votes.jsonl").code == 0
    assert "\nright to wrong (votes)  " in command.run("runs", "compare", names[0], tmp_path / "votes.jsonl").out
    equal = command.run("runs", "compare", *names, "--kl", "--json").object
    assert (equal["mean_kld"], equal["top1_agreement"]) == (0.0, 1.0)
    os.utime(other)
    changed = command.run("runs", "compare", *names, "--kl")
    assert problem(changed).startswith("error: the file of other has changed since the run sums-other")
    assert command.run("runs", "rm", "-y", names[0]).code == 0
    assert [row["name"] for row in command.run("runs", "list", "--json").object] == names[1:]
    assert command.run("runs", "show", names[0]).code == 2


def test_rescoring_scores_the_saved_texts_again(command: CommandLine, sums: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    report = run_eval(command, sums, "--limit", "5", "-o", run).object
    samples = samples_of(run)
    for sample in samples:
        sample["correct"] = not sample["correct"]
    run.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    record = record_of(run)
    record["result"] = {"size": run.stat().st_size, "sha256": hashlib.sha256(run.read_bytes()).hexdigest()}
    Path(f"{run}.meta.json").write_text(json.dumps(record), encoding="utf-8")
    assert command.run("runs", "show", run, "--json").object["accuracy"] == 1 - report["accuracy"]
    again = command.run("runs", "show", run, "--rescore", "--json")
    assert again.object["accuracy"] == report["accuracy"]
    assert (again.err, again.object["marking"]) == ("5 of 5 scores changed\n", str(SCORING_VERSION))
    assert samples_of(run) == samples
    assert problem(command.run("runs", "show", run, "--save")) == "error: --save requires --rescore"
    assert "5 of 5 scores changed; saved\n" in command.run("runs", "show", run, "--rescore", "--save").err
    assert command.run("runs", "show", run, "--json").object["accuracy"] == report["accuracy"]


@pytest.fixture
def other_rules(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this a copy of the program with other rules of scoring, newer by a number of versions."""
    return lambda by: monkeypatch.setattr(scorers, "SCORING_VERSION", SCORING_VERSION + by)


def test_run_is_opened_with_other_rules_of_scoring(
    command: CommandLine, sums: Path, tmp_path: Path, other_rules: Callable[[int], None]
) -> None:
    run, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    ours, theirs = SCORING_VERSION, SCORING_VERSION + 1
    assert run_eval(command, sums, "--limit", "4", "-o", run).code == 0
    for by, version, now in ((1, ours, theirs), (0, theirs, ours)):
        other_rules(1 - by)
        assert run_eval(command, sums, "--limit", "4", "--restart", "-o", run).code == 0
        other_rules(by)
        scored = f"run was scored by rules version {version}"
        hint = f"score it again: cerebrum runs show {run} --rescore --save\n"
        shown = command.run("runs", "show", run)
        assert shown.code == 0 and f"note: {scored}, not rules version {now}\n      {hint}" in shown.err, shown.err
        assert command.run("runs", "show", run, "--json").object["marking"] == str(version)
        assert run_eval(command, sums, "--limit", "4", "--restart", "-o", other).code == 0
        compared = command.run("runs", "compare", run, other, "--json")
        assert (compared.object["n"], compared.object["flips"]) == (4, 0)
        again = f"for this comparison its replies were scored again by rules version {now}"
        assert compared.err == f"note: {scored}; {again}\n"
        before = run.read_bytes()
        for arguments in (("--limit", "6"), ("--limit", "6", "--dry-run")):
            refused = run_eval(command, sums, *arguments, "-o", run)
            assert (refused.code, refused.err) == (1, f"error: {scored}, not rules version {now}\n hint: {hint}")
        assert run.read_bytes() == before
        assert command.run("runs", "show", run, "--rescore", "--save").code == 0
        assert run_eval(command, sums, "--limit", "6", "-o", run).object["n"] == 6
        assert command.run("runs", "show", run, "-q").err == ""


def test_run_of_another_version_is_not_extended(
    command: CommandLine, sums: Path, other_rules: Callable[[int], None]
) -> None:
    assert run_eval(command, sums, "--limit", "2").code == 0
    run = command.home / "data" / "cerebrum" / "runs" / "sums-nano.jsonl"
    record = record_of(run)
    assert record["fingerprint"]["prompt"].endswith("\nUser: {question}\nAI:")
    assert record["fingerprint"]["default template"] == "{question}"
    assert run_eval(command, sums, "--limit", "2", "--template", "{question}", "-s", "Hi.").err.startswith(
        "note: sums-nano was made with another template (none, now {question}) and another system (none, now Hi.);"
    )
    assert command.run("runs", "rm", "-y", "sums-nano-2").code == 0
    other_rules(1)
    assert run_eval(command, sums, "--limit", "4").err.endswith(
        "hint: score it again: cerebrum runs show sums-nano --rescore --save\n"
    )
    listed = command.run("runs", "list")
    assert listed.err == "note: scored by other rules: sums-nano\n      run cerebrum runs show RUN\n"
    other_rules(0)
    ours = f"{record['fingerprint']['llama.cpp'][:39]}…"
    record["fingerprint"]["llama.cpp"] = "abc"
    Path(f"{run}.meta.json").write_text(json.dumps(record), encoding="utf-8")
    difference = f"was made with another llama.cpp (abc, now {ours})"
    refused = run_eval(command, sums, "--limit", "4", "-o", run)
    assert_error(refused, 1, f"{run} {difference}", "use --restart to replace it, or choose another -o")
    done = run_eval(command, sums, "--limit", "4")
    assert done.err.startswith(f"note: sums-nano {difference}; this is a new run, sums-nano-2\n")
    assert run_eval(command, sums, "--limit", "4", "-q").err == ""
    assert run_eval(command, sums, "--limit", "2", "--restart").object["n"] == 2
    compared = command.run("runs", "compare", "sums-nano", "sums-nano-2", "--json")
    assert compared.err == f"note: the runs were made with different versions: llama.cpp (abc and {ours})\n"
    assert compared.object["flips"] == 0
