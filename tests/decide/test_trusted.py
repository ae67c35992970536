"""`cerebrum decide` with a wanted error: calibrations by labelled rows, rows left undecided, and a second model."""

import csv
import json
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, assert_error
from remote_engines import serving_kind
from scripted_backend import END
from server_kinds import OllamaServer

QUESTION = "Is a refund requested? {text}"
WORDS = [
    "money",
    "back",
    "please",
    "refund",
    "parcel",
    "lamp",
    "broken",
    "late",
    "happy",
    "again",
    "order",
    "card",
    "never",
    "thanks",
    "where",
]
SURE = {"yes": -0.01, "no": -4.6}
OTHER = {"yes": "no", "no": "yes"}
LABELLED, NEW = 90, 24
CALIBRATED = ("--calibration", "refunds", "--max-error", "0.2")


@pytest.fixture
def user(tmp_path: Path) -> CommandLine:
    """A user with rows that are labelled as the model answers them, but for every tenth, and new ones."""
    user = CommandLine(tmp_path)
    choose = random.Random(1)
    texts = [" ".join(choose.choices(WORDS, k=9)) for _ in range(LABELLED + NEW)]
    (tmp_path / "new.jsonl").write_text(lines({"text": text} for text in texts[LABELLED:]))
    (tmp_path / "texts.jsonl").write_text(lines({"text": text} for text in texts[:LABELLED]))
    assert decide(user, "texts.jsonl", "-o", "answers.jsonl").code == 0
    answers = [row["answer"] for row in read(tmp_path / "answers.jsonl")]
    labels = [OTHER[answer] if number % 10 == 9 else answer for number, answer in enumerate(answers)]
    rows = ({"text": text, "label": label} for text, label in zip(texts, labels, strict=False))
    (tmp_path / "labelled.jsonl").write_text(lines(rows))
    return user


def lines(rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)  # type: ignore[attr-defined]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def decide(user: CommandLine, *words: str, question: str = QUESTION, model: str = "nano") -> Finished:
    return run(user, "decide", question, *words, "-m", model)


def run(user: CommandLine, *words: str) -> Finished:
    return user.run(*words, directory=user.home)


def calibrate(user: CommandLine, name: str = "refunds") -> Finished:
    done = decide(user, "labelled.jsonl", "--label", "label", "--calibrate", name)
    assert done.code == 0 and f"calibration {name} saved: 90 labelled rows" in done.err
    return done


def test_rows_are_decided_up_to_a_wanted_error(user: CommandLine) -> None:
    report = calibrate(user)
    assert "promised with 90% confidence" in report.out
    done = decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv")
    assert done.code == 0
    with (user.home / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["decided"] for row in rows} <= {"True", "False"}
    assert all(bool(row["answer"]) == (row["decided"] == "True") for row in rows)
    decided = sum(row["decided"] == "True" for row in rows)
    assert f"{decided} of {NEW} rows decided; of those at most 20% are wrong (90% confidence)" in done.err


def test_what_cannot_be_promised_is_an_error(user: CommandLine) -> None:
    calibrate(user)
    done = decide(user, "new.jsonl", "--calibration", "refunds", "--max-error", "0.01", "-o", "other.jsonl")
    assert_error(done, 2, "with 90 labelled rows", "can be promised", "--max-error")


@pytest.mark.parametrize(
    ("question", "words", "parts"),
    [
        ("Is it urgent? {text}", (), ("made with another question", "--force")),
        (QUESTION, ("--fast",), ("made with other settings",)),
        (QUESTION, ("--letters",), ("made with other settings",)),
        (QUESTION, ("--choices", "yes,no,maybe"), ("another question and other choices",)),
        (QUESTION, ("--choices", "yes=it is money,no"), ("made with another question",)),
    ],
)
def test_a_calibration_of_something_else_is_refused(
    user: CommandLine, question: str, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    calibrate(user)
    done = decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv", *words, question=question)
    assert_error(done, 2, *parts)


def test_a_calibration_of_another_question_may_be_forced(user: CommandLine) -> None:
    calibrate(user)
    done = decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv", "--force", question="Is money wanted? {text}")
    assert done.code == 0 and "its promise may not hold" in done.err
    assert "nothing is promised of them" in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--calibration", "other"), ("no calibration named 'other'", "refunds")),
        (("--calibration", "../x"), ("invalid calibration",)),
        (("--max-error", "0.1"), ("--max-error requires --calibration",)),
        (("--calibration", "refunds", "--then", "nano"), ("--then requires --calibration and --max-error",)),
        (("--calibration", "refunds", "--confidence", "0.8"), ("--confidence requires --max-error",)),
    ],
)
def test_bad_input_is_one_line(user: CommandLine, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    calibrate(user)
    assert_error(decide(user, "new.jsonl", "-o", "new.csv", *words), 2, *parts)


def test_a_row_with_choices_of_its_own_has_an_error(user: CommandLine) -> None:
    calibrate(user)
    (user.home / "own.jsonl").write_text(lines([{"text": "a", "choices": ["x", "y"]}, {"text": "a"}]))
    done = decide(user, "own.jsonl", *CALIBRATED, "-o", "own.out.jsonl")
    assert done.code == 6
    own, other = read(user.home / "own.out.jsonl")
    assert "choices of its own" in str(own["error"]) and other["error"] is None


def test_calibrating_needs_labels(user: CommandLine) -> None:
    assert_error(decide(user, "new.jsonl", "--calibrate", "x", "-o", "new.csv"), 2, "--calibrate requires --label")


def test_a_calibration_that_cannot_be_saved_is_one_line(user: CommandLine) -> None:
    calibrate(user)
    (folder,) = user.home.rglob("calibrations/refunds")
    (folder.parent / "file").write_text("")
    done = decide(user, "labelled.jsonl", "--label", "label", "--calibrate", "file")
    assert done.code == 2 and "error: " in done.err and "Traceback" not in done.err


def test_a_damaged_calibration_is_refused(user: CommandLine) -> None:
    calibrate(user)
    (file,) = user.home.rglob("calibrations/refunds/*.json")
    file.write_text('{"version": 1}')
    assert_error(decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv"), 2, "not a calibration", "--calibrate")


def test_labelled_rows_show_whether_the_promise_holds(user: CommandLine) -> None:
    calibrate(user)
    done = decide(user, "labelled.jsonl", "--label", "label", *CALIBRATED)
    assert done.code == 0 and "of them wrong" in done.err and "\n0 of 90 rows decided" not in done.err


def test_a_second_model_decides_the_rest(user: CommandLine) -> None:
    calibrate(user)
    words = ("new.jsonl", *CALIBRATED, "--then", "nano", "-o", "new.out.jsonl")
    done = decide(user, *words)
    assert done.code == 0
    rows = read(user.home / "new.out.jsonl")
    assert len(rows) == NEW and {row["model"] for row in rows} == {"nano"}
    assert "nano: " in done.err
    before = (user.home / "new.out.jsonl").read_bytes()
    assert decide(user, *words).code == 0 and (user.home / "new.out.jsonl").read_bytes() == before


class SureOfMoney(OllamaServer):
    """A server that says "yes": nearly certainly if a text has the word money, else it is guessing."""

    def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
        is_sure = "money" in body["messages"][-1]["content"]
        likeliest = SURE if is_sure else {"yes": -0.68, "no": -0.70}
        for reply in super().complete(body):
            choices = reply["choices"] if isinstance(reply, dict) else []
            for choice in choices:
                if "logprobs" in choice:
                    [first] = choice["logprobs"]["content"]
                    first["top_logprobs"] = [{"token": text, "logprob": each} for text, each in likeliest.items()]
            yield reply


def test_two_servers_decide_the_rest_and_a_kill_loses_nothing(user: CommandLine) -> None:
    texts = [row["text"] for row in read(user.home / "texts.jsonl")]
    labels = ["no" if "money" not in text and number % 2 else "yes" for number, text in enumerate(texts)]
    rows = ({"text": text, "label": label} for text, label in zip(texts, labels, strict=True))
    (user.home / "labelled.jsonl").write_text(lines(rows))
    with serving_kind(SureOfMoney, ended, context_size=10_000) as [first], two_servers() as others:
        first.openings = SURE
        asked = ("decide", QUESTION, "--endpoint", first.url)
        assert run(user, *asked, "labelled.jsonl", "--label", "label", "--calibrate", "refunds").code == 0
        assert run(user, *asked, "new.jsonl", *CALIBRATED, "-o", "alone.jsonl").code == 0
        alone = read(user.home / "alone.jsonl")
        undecided = {row["id"] for row in alone if not row["decided"]}
        assert undecided == {row["id"] for row in alone if "money" not in row["prompt"]}
        words = [word for server in others for word in ("--then-endpoint", server.url)]
        command = (*asked, "new.jsonl", *CALIBRATED, *words, "-o", "new.out.jsonl")
        armed = [server.arm(let_through=2, hang_after=0) for server in others]
        process = user.start(*command)
        for server, fault in zip(others, armed, strict=True):
            server.wait_for(partial(getattr, fault, "struck"))
        process.kill()
        process.communicate()
        for server in others:
            server.disarm()
        done = run(user, *command)
        assert done.code == 0, done.err
    answered = read(user.home / "new.out.jsonl")
    for row, of_first in zip(answered, alone, strict=True):
        if row["id"] in undecided:
            assert (row["answer"], row["decided"], row["model"]) == ("no", True, "large")
        else:
            assert row == of_first | {"model": row["model"]} and row["model"] != "large"
    assert f"large: {len(undecided)} rows decided" in done.err


@contextmanager
def two_servers() -> Iterator[list[OllamaServer]]:
    """Two servers of a model that says no."""
    with serving_kind(OllamaServer, ended, 2, context_size=10_000) as servers:
        for server in servers:
            server.openings = {"yes": -2.0, "no": -0.2}
            server.models = ("large",)
        yield servers


def ended(held: tuple[int, ...], seed: int) -> int:
    return END


def test_rows_unlike_the_labelled_ones_get_a_notice(user: CommandLine) -> None:
    calibrate(user)
    (file,) = user.home.rglob("calibrations/refunds/*.json")
    calibration = json.loads(file.read_text())
    calibration["rows"] = [[0.99, is_right, choice] for _, is_right, choice in calibration["rows"]]
    file.write_text(json.dumps(calibration))
    done = decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv")
    assert done.code == 0 and "the rows differ from the labelled ones" in done.err


def test_a_resumed_run_keeps_its_calibration(user: CommandLine) -> None:
    calibrate(user)
    words = ("new.jsonl", *CALIBRATED, "-o", "new.csv")
    assert decide(user, *words).code == 0
    done = decide(user, "new.jsonl", "--calibration", "refunds", "--max-error", "0.25", "-o", "new.csv")
    assert_error(done, 1, "new.csv was made with other settings: error of the decided")
