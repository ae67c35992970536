"""`cerebrum decide` with a wanted error: calibrations by labelled rows, and rows left undecided."""

import csv
import json
import random
import shutil
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, assert_error
from remote_engines import serving_kind
from scripted_backend import END
from server_kinds import OllamaServer

from cerebrum_cli.library.installed import NANO

QUESTION = "Is a refund requested? {text}"
WORDS = "money back please refund parcel lamp broken late happy again order card never thanks where"
SURE = {"yes": -0.01, "no": -4.6}
LABELLED, NEW = 90, 24
CALIBRATED = ("--calibration", "refunds.json", "--max-error", "0.2")
CALIBRATE = ("labelled.jsonl", "--label", "label", "--calibrate")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a calibration by rows that are labelled as the model answers them, but for every tenth; new rows."""
    user = CommandLine(tmp_path_factory.mktemp("calibrated"))
    choose = random.Random(1)
    texts = [" ".join(choose.choices(WORDS.split(), k=9)) for _ in range(LABELLED + NEW)]
    write(user, "new.jsonl", ({"text": text} for text in texts[LABELLED:]))
    write(user, "texts.jsonl", ({"text": text} for text in texts[:LABELLED]))
    assert decide(user, "texts.jsonl", "-o", "answers.jsonl").code == 0
    answers = [row["answer"] for row in read(user, "answers.jsonl")]
    other = {"yes": "no", "no": "yes"}
    labels = [other[answer] if number % 10 == 9 else answer for number, answer in enumerate(answers)]
    write(user, "labelled.jsonl", ({"text": text, "label": each} for text, each in zip(texts, labels, strict=False)))
    done = decide(user, *CALIBRATE, "refunds.json")
    assert done.code == 0 and "wrote refunds.json, a calibration by 90 labelled rows" in done.err
    assert "promised with 90% confidence" in done.out
    return user.home


@pytest.fixture
def user(tmp_path: Path, calibrated: Path) -> CommandLine:
    """A user with a copy of that home."""
    return CommandLine(shutil.copytree(calibrated, tmp_path / "home"))


def write(user: CommandLine, name: str, rows: Iterable[object]) -> None:
    (user.home / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def read(user: CommandLine, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (user.home / name).read_text().splitlines()]


def decide(user: CommandLine, *words: str, model: str = "nano") -> Finished:
    return user.run("decide", QUESTION, *words, "-m", model)


def test_rows_are_decided_up_to_a_wanted_error(user: CommandLine) -> None:
    done = decide(user, "new.jsonl", *CALIBRATED, "-o", "new.csv")
    assert done.code == 0
    with (user.home / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["decided"] for row in rows} <= {"True", "False"}
    assert all(bool(row["answer"]) == (row["decided"] == "True") for row in rows)
    decided = sum(row["decided"] == "True" for row in rows)
    assert f"{decided} of {NEW} rows decided; of those at most 20% are wrong (90% confidence)" in done.err
    other = decide(user, "new.jsonl", *CALIBRATED[:3], "0.25", "-o", "new.csv")
    assert_error(other, 1, "new.csv was made with other settings: max_error")


def test_a_calibration_holds_for_the_same_model_file_by_another_name(user: CommandLine) -> None:
    (user.home / "renamed.gguf").symlink_to(NANO)
    shutil.copy(NANO, user.home / "copy.gguf")
    for model in ("./renamed.gguf", "./copy.gguf"):
        done = decide(user, "new.jsonl", *CALIBRATED, "-o", f"{model}.csv", model=model)
        assert done.code == 0, done.err


def test_labelled_rows_show_whether_the_promise_holds(user: CommandLine) -> None:
    done = decide(user, "labelled.jsonl", "--label", "label", *CALIBRATED, "-o", "kept.jsonl")
    assert done.code == 0 and "of them wrong" in done.err and "\n0 of 90 rows decided" not in done.err


def test_decisions_with_and_without_a_threshold_are_compared(user: CommandLine) -> None:
    label = "labelled.jsonl", "--label", "label", "--calibration", "refunds.json"
    assert decide(user, *label, "-o", "all.jsonl").code == 0
    assert decide(user, *label, "--max-error", "0.2", "-o", "kept.jsonl").code == 0
    compared = user.run("runs", "compare", "all.jsonl", "kept.jsonl", "--json").object
    assert (compared["n"], compared["difference"]) == (LABELLED, 0.0)
    assert compared["differences"]["max_error"] == [None, 0.2]


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


@pytest.mark.parametrize("first", ["first.jsonl", "first.csv"])
def test_another_model_decides_what_is_undecided(user: CommandLine, first: str) -> None:
    texts = [row["text"] for row in read(user, "texts.jsonl")]
    labels = ["no" if "money" not in text and number % 2 else "yes" for number, text in enumerate(texts)]
    write(user, "labelled.jsonl", ({"text": text, "label": each} for text, each in zip(texts, labels, strict=True)))
    with serving_kind(SureOfMoney, lambda held, seed: END, context_size=10_000) as [server]:
        server.openings = SURE
        asked = ("decide", QUESTION, "--endpoint", server.url)
        assert user.run(*asked, *CALIBRATE, "refunds.json").code == 0
        assert user.run(*asked, "new.jsonl", *CALIBRATED, "-o", first).code == 0
    assert decide(user, "new.jsonl", "--undecided-of", first, "-o", "rest.jsonl").code == 0
    other = decide(user, "texts.jsonl", "--undecided-of", first, "-o", "other.jsonl")
    assert_error(other, 2, "no undecided row is in texts.jsonl", "the earlier output")
    undecided = [number for number, row in enumerate(read(user, "new.jsonl"), 1) if "money" not in row["text"]]
    assert [row["id"] for row in read(user, "rest.jsonl")] == undecided


def test_rows_unlike_the_labelled_ones_get_a_notice(user: CommandLine) -> None:
    file = user.home / "refunds.json"
    calibration = json.loads(file.read_text())
    calibration["rows"] = [[0.99, is_right] for _, is_right in calibration["rows"]]
    file.write_text(json.dumps(calibration))
    for output in ("shifted.csv", "shifted.jsonl", "-", "shifted.csv", "shifted.jsonl"):  # the last without a new row
        done = decide(user, "texts.jsonl", *CALIBRATED, "-o", output)
        assert done.code == 0 and "the rows differ from the labelled ones" in done.err, output
