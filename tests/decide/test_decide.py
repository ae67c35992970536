"""`cerebrum decide` on the bundled model: one text, rows of files, labelled rows; and the library."""

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, assert_error
from dataset_files import table

from cerebrum_cli import open_model
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import Interrupted, PromptTooLong, UsageError
from cerebrum_cli.decide.choice_questions import ChoiceQuestion
from cerebrum_cli.decide.deciding import decide as decide_questions
from cerebrum_cli.decide.given_choices import YES_OR_NO

TICKETS = (
    'id,text,extra\na,"Give me my money back, please.",1\nb,Where is my parcel?,2\nc,,3\nd,The lamp is broken.,4\n'
)
REFUND = "Is a refund requested? {text}"


@pytest.fixture
def user(tmp_path: Path) -> CommandLine:
    (tmp_path / "tickets.csv").write_text(TICKETS)
    (tmp_path / "labelled.csv").write_text("id,text,refund\na,Money back!,yes\nb,Where is it?,no\nd,Broken.,no\n")
    return CommandLine(tmp_path)


def decide(user: CommandLine, *words: str, stdin: str | bytes | None = None) -> Finished:
    return user.run("decide", *words, "-m", "nano", stdin=stdin, directory=user.home)


def table_of(user: CommandLine, name: str) -> list[dict[str, str]]:
    with (user.home / name).open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_rows(user: CommandLine, *rows: dict[str, Any]) -> None:
    (user.home / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_an_answer_and_its_probability(user: CommandLine) -> None:
    done = decide(user, "Is a refund requested?", stdin="Give me my money back.\n")
    answer, probability = done.out.split()
    assert answer in ("yes", "no") and 0.5 <= float(probability) <= 1
    assert done.code == 0
    assert done.err.startswith("note: the model would rather answer something else")  # its weights are random
    assert decide(user, "Is a refund requested?", "-q", stdin="Give me my money back.\n").out == f"{answer}\n"


def test_json_has_the_probability_of_each_choice(user: CommandLine) -> None:
    (user.home / "ticket.txt").write_text("My invoice is wrong.")
    done = decide(user, "Which team?", "--choices", "billing=invoices,technical,other", "-f", "ticket.txt", "--json")
    found = done.object
    probabilities = {choice["name"]: choice["probability"] for choice in found["choices"]}
    assert [*probabilities] == ["billing", "technical", "other"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert found["answer"] == max(probabilities, key=probabilities.__getitem__)
    assert found["probability"] == probabilities[found["answer"]]
    assert (found["method"], found["model"]) == ("averaged prompts", "nano")


def test_a_score_has_a_mean(user: CommandLine) -> None:
    found = decide(user, "How urgent is it?", "--score", "1..12", "--json", stdin="Fire!").object
    assert len(found["choices"]) == 12
    mean = sum(int(choice["name"]) * choice["probability"] for choice in found["choices"])
    assert found["mean"] == pytest.approx(mean)
    answer, shown = decide(user, "How urgent is it?", "--score", "1..12", stdin="Fire!").out.split()
    assert (answer, shown) == (found["answer"], f"({mean:.1f})")


@pytest.mark.parametrize(("count", "letters"), [(2, False), (3, True), (4, False), (5, True), (30, False)])
def test_choices_in_the_reverse_order_have_the_same_probabilities(count: int, letters: bool) -> None:
    names = [f"choice of many words {number}" if count == 4 else f"n{number}" for number in range(count)]
    with open_model("nano") as model:
        forward = model.decide("Which one?", names, letters=letters)
        backward = model.decide("Which one?", names[::-1], letters=letters)
    assert dict(zip(forward.names, forward.probabilities, strict=True)) == dict(
        zip(backward.names, backward.probabilities, strict=True)
    )


def test_rows_of_a_table_get_columns(user: CommandLine) -> None:
    done = decide(user, REFUND, "tickets.csv", "-o", "out.csv", "--probabilities")
    assert done.code == 6 and "1 failed" in done.err
    rows = table_of(user, "out.csv")
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    for row in rows[:2]:
        both = float(row["probability of yes"]), float(row["probability of no"])
        assert sum(both) == pytest.approx(1, abs=1e-5) and float(row["probability"]) == max(both)
        assert row["answer"] == ("yes" if both[0] == max(both) else "no") and row["error"] == ""
    assert rows[2]["answer"] == "" and rows[2]["error"] == "invalid_request: the text is empty"


def test_rows_of_json_lines_are_the_same_for_any_number_at_a_time(user: CommandLine) -> None:
    decide(user, REFUND, "tickets.csv", "-o", "out.jsonl")
    decide(user, REFUND, "tickets.csv", "-o", "one.jsonl", "--parallel", "1")
    lines = rows_of((user.home / "out.jsonl").read_text())
    assert list(lines[0]) == ["id", "prompt", "answer", "probability", "error", "key"]
    assert lines[0]["prompt"] == "Is a refund requested? Give me my money back, please."
    others = rows_of((user.home / "one.jsonl").read_text())
    for row, other in zip(lines, others, strict=True):
        assert row["answer"] == other["answer"] and row["probability"] == pytest.approx(other["probability"], abs=1e-3)


SETTINGS = {"n": 5, "seed": "x", "temperature": -1, "system": 3, "tools": ["saw"], "json_schema": "none", "model": "T4"}
ROW = {"id": "a", "text": "Money back!", **SETTINGS}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.jsonl", json.dumps(ROW).encode()),
        ("body.jsonl", json.dumps({"body": ROW}).encode()),
        ("in.csv", f"{','.join(ROW)}\n{','.join(map(str, ROW.values()))}\n".encode()),
        ("in.parquet", table([ROW])),
    ],
)
def test_fields_with_names_of_settings_are_data(user: CommandLine, name: str, data: bytes) -> None:
    (user.home / name).write_bytes(data)
    plain = decide(user, "Is a refund requested?", "--json", stdin="Money back! 5").object
    done = decide(user, "Is a refund requested?\n\n{text} {n}", name, "-o", "-")
    assert (done.code, done.object["prompt"]) == (0, "Is a refund requested?\n\nMoney back! 5")
    assert done.object["probability"] == pytest.approx(plain["probability"], abs=1e-3)


def test_rows_have_no_settings_but_a_system_prompt(user: CommandLine) -> None:
    words = "How urgent is it?", "--score", "1..12"
    messages = [{"role": "system", "content": "Be calm."}, {"role": "user", "content": "Fire!"}]
    own = {"prompt": "Fire!", **SETTINGS, "system": "Be calm."}
    write_rows(user, {"prompt": "Fire!"}, own, {"messages": messages, "stop": 1})
    done = decide(user, *words, "in.jsonl", "-o", "-", "-s", "Be strict and brief.", "--parallel", "1")
    systems = "Be strict and brief.", "Be calm."
    strict, calm = (decide(user, *words, "--json", "-s", each, stdin="Fire!").object["mean"] for each in systems)
    assert [row["mean"] for row in rows_of(done.out)] == pytest.approx([strict, calm, calm], abs=1e-3)
    assert strict != calm


def test_a_row_with_other_choices_is_decided_again(user: CommandLine) -> None:
    def run(*choices: str) -> list[dict[str, str]]:
        write_rows(user, *({"prompt": "Which?", "choices": names.split()} for names in choices))
        decide(user, "Choose.", "in.jsonl", "-o", "out.jsonl")
        return rows_of((user.home / "out.jsonl").read_text())

    first, second = run("a b", "x y")
    assert first["answer"] in "ab" and second["answer"] in "xy"
    again = run("x y", "p q", "a b")
    assert [row["answer"] for row in again[::2]] == [second["answer"], first["answer"]]
    assert again[1]["answer"] in "pq"


def test_settings_that_cannot_change_a_decision_do_not_stop_a_resume(user: CommandLine) -> None:
    plain = decide(user, "Is it?", "--json", stdin="It glows.")
    decide(user, REFUND, "tickets.csv", "-o", "out.csv")
    before = (user.home / "out.csv").read_bytes()
    values = (
        "temperature = 2\nseed = 3\nmax_tokens = 9\ntop_k = 1\nstop = ['y', 'n']\nthink = 'on'\nloop_check = false\n"
    )
    (user.config / "config.toml").write_text(values)
    assert decide(user, "Is it?", "--json", stdin="It glows.") == plain
    (user.home / "tickets.csv").write_text(TICKETS + "e,Give me my money back.,5\n")
    assert decide(user, REFUND, "tickets.csv", "-o", "out.csv").code == 6
    assert (user.home / "out.csv").read_bytes().startswith(before)
    (user.config / "config.toml").write_text("system = 'Be strict.'")
    assert_error(decide(user, REFUND, "tickets.csv", "-o", "out.csv"), 1, "other settings: system")


def test_labelled_rows_are_a_run(user: CommandLine) -> None:
    done = decide(user, REFUND, "labelled.csv", "--label", "refund", "--json", "--plot", "p.svg")
    report = done.object
    assert report["n"] == 3 and 0 <= report["accuracy"] <= 1
    assert report["log_loss"] > 0
    assert sum(cell["rows"] for cell in report["confusions"]) == 3
    assert "<svg" in (user.home / "p.svg").read_text()
    [path] = user.home.glob("labelled-nano-*.jsonl")
    shown = user.run("runs", "show", path.name, directory=user.home)
    assert re.match(r"\d+% right \(\d+ to \d+\), \d of 3; log loss \d\.\d{3}\nlabelled: nano\n", shown.out)
    assert "label \\ answer" in shown.out and "token" not in shown.out
    assert not report.keys() & {"samples", "maj", "pass_at", "no_answer", "tokens_per_sample", "sampling", "date"}
    again = decide(user, REFUND, "labelled.csv", "--label", "refund", "--json")
    assert again.object["confusions"] == report["confusions"]
    other = decide(user, f"{REFUND} Really?", "labelled.csv", "--label", "refund")
    assert other.code == 0 and len([*user.home.glob("labelled-nano-*.jsonl")]) == 2


def test_labelled_rows_of_a_table_have_the_same_report(user: CommandLine) -> None:
    words = REFUND, "labelled.csv", "--label", "refund", "--json", "-o"
    found = [decide(user, *words, output).object for output in ("out.jsonl", "out.csv", "out.csv")]
    assert found[1] == found[2]
    for key in ("n", "accuracy", "log_loss", "confusions", "share_promised"):
        assert found[0][key] == found[1][key]
    plain = decide(user, REFUND, "labelled.csv", "-o", "plain.csv", "--probabilities")
    assert plain.code == 0
    rows, plain_rows = table_of(user, "out.csv"), table_of(user, "plain.csv")
    assert {row.pop("first_word") for row in rows} <= {"yes", "no"}
    assert all(row.pop("key") != plain_row.pop("key") for row, plain_row in zip(rows, plain_rows, strict=True))
    assert [row.pop("reference") for row in rows] == [row["refund"] for row in rows] and rows == plain_rows


def test_column_of_choices_in_a_table_may_have_another_meaning(user: CommandLine) -> None:
    (user.home / "plain.csv").write_text('text,choices\nMoney back!,red\nHello,"[""yes"", ""no""]"\n')
    done = decide(user, REFUND, "plain.csv", "-o", "out.csv")
    assert done.code == 0, done.err
    assert [row["choices"] for row in table_of(user, "out.csv")] == ["red", '["yes", "no"]']


def test_votes_are_shares_of_samples(user: CommandLine) -> None:
    words = "Which?", "--choices", "lamp,chair", "--votes", "8", "--seed", "1", "--json"
    found = decide(user, *words, stdin="It glows.").object
    assert found["method"] == "8 votes"
    shares = [choice["probability"] * 8 for choice in found["choices"]]
    assert sum(shares) == 8 and all(share == int(share) for share in shares)
    assert decide(user, *words, stdin="It glows.").object == found


def test_rows_are_decided_by_votes(user: CommandLine) -> None:
    done = decide(user, REFUND, "tickets.csv", "-o", "out.csv", "--votes", "4")
    assert done.code == 6
    rows = table_of(user, "out.csv")
    assert [row["probability"] in ("0.5", "0.75", "1.0") for row in rows if not row["error"]] == [True] * 3


@pytest.mark.parametrize("name", ["chatml_model", "recurrent_model", "sliding_window_model"])
def test_models_of_all_kinds_decide(name: str, request: pytest.FixtureRequest) -> None:
    choices = ["card lost", "card stolen", "card", "other things"]
    with open_model(str(request.getfixturevalue(name))) as model:
        forward = model.decide("Is it so? " * 20, choices)
        backward = model.decide("Is it so? " * 20, choices[::-1])
        assert forward.probabilities == pytest.approx(backward.probabilities[::-1], abs=1e-3)
        assert forward.answer == backward.answer


def test_a_model_decides() -> None:
    with open_model("nano") as model:
        decision = model.decide("Which team?", {"billing": "invoices", "other": ""})
        assert decision.names == ("billing", "other") and decision.answer in decision.names
        assert model.decide("Is it?", letters=True).method == "letters, averaged prompts"
        assert model.decide("How urgent?", score=(1, 5)).method == "one prompt"
        assert 1 <= (model.decide("How urgent?", score=(1, 5)).mean or 0) <= 5
        for choices in (["yes"], "yes,no", [1, 2], ["a", " A"], ["a", " "]):
            with pytest.raises(UsageError):
                model.decide("Is it?", choices)  # type: ignore[arg-type]
        for options in ({"letters": True, "votes": 2}, {"letters": True, "score": (1, 5)}):
            with pytest.raises(UsageError, match="cannot be used together"):
                model.decide("Is it?", **options)
        with pytest.raises(PromptTooLong):
            model.decide("word " * 20_000)


def test_a_signal_ends_all_questions_and_decides_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise Interrupted(signal.SIGINT)

    question = (None, ChoiceQuestion(Conversation().user("Is it?"), YES_OR_NO))
    with open_model("nano") as model:
        monkeypatch.setattr(model, "prepare_reply", interrupted)
        with pytest.raises(Interrupted):
            list(decide_questions(model, [question]))
        with pytest.raises(Interrupted):
            list(decide_questions(model, [question], votes=2))
