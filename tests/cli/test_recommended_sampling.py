"""Sampling that a model's file and its row in models.toml recommend: which value wins, and where it is reported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished
from scripted_command import run_here
from served import serving_user
from templates import TEMPLATES
from tiny_models import write_chatml

FILE = {"temp": 0.5, "top_k": 64, "top_p": 0.95, "mirostat_tau": 5.0}
ROW = """
[models.thinker]
repo_id = "o/thinker"
file = "thinker.gguf"
settings = {temperature = 1.0, think = "on"}
thinking = {presence_penalty = 1.5}
no_thinking = {temperature = 0.7, top_p = 0.8}
"""
ON = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.05, "presence_penalty": 1.5}
OFF = {"temperature": 0.7, "top_k": 64, "top_p": 0.8, "min_p": 0.05}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a switch for its thinking, whose file recommends sampling."""
    path = tmp_path_factory.mktemp("models") / "thinker.gguf"
    return write_chatml(path, chat_template=TEMPLATES["qwen3"], sampling=FILE)


class User:
    """A user of a scripted model, with a row of their own for it."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home, self.model = home, model
        self.config = CommandLine(home).config
        self.row(ROW)
        self.script: dict[str, Any] = {}

    def row(self, text: str) -> None:
        (self.config / "models.toml").write_text(text, encoding="utf-8")

    def run(self, command: str, *arguments: str | Path, typed: str | None = None) -> Finished:
        self.script = {"seeds": ["The answer is 4."], "rows": {}, "backends": []}
        piped = None if typed is None else typed.encode()
        return run_here(self.script, self.home, command, "-m", self.model, *arguments, piped=piped)

    def sampled(self, *arguments: str | Path, typed: str | None = None, command: str = "ask") -> list[dict[str, Any]]:
        done = self.run(command, *arguments, typed=typed)
        assert done.code == 0, done.err
        return [params.samplers for backend in self.script["backends"] for params in backend.params]

    def stats(self, *arguments: str) -> str:
        [line] = [line for line in self.run("ask", "Q", "--stats", *arguments).err.splitlines() if "| seed " in line]
        return line.partition(" | seed ")[0].rpartition(" | ")[2]


@pytest.fixture
def user(tmp_path: Path, thinker: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.chdir(tmp_path)
    return User(tmp_path, thinker)


def test_question_is_sampled_as_the_model_recommends(user: User, chatml_model: Path) -> None:
    assert user.sampled("Q") == user.sampled("Q", "--think", "on") == user.sampled("Q", "--think", "9") == [ON]
    assert user.sampled("Q", "--think", "off") == [OFF]
    assert user.sampled("Q", "--set", "top_k=3") == [ON | {"top_k": 3}]
    assert user.sampled("Q", "--temperature", "0") == [{"temperature": 0.0, "presence_penalty": 1.5}]
    user.row("")
    assert user.sampled("Q") == [{"temperature": 0.5, "top_k": 64, "top_p": 0.95, "min_p": 0.05}]
    assert user.sampled("Q", "-m", chatml_model) == [{"temperature": 0.0}]


def test_endpoint_is_sent_what_the_model_recommends(tmp_path: Path, thinker: Path) -> None:
    User(tmp_path, thinker)
    with serving_user(tmp_path, thinker) as served:
        assert served.run("ask", "Q").code == served.run("ask", "Q", "--think", "off").code == 0
        sent = [{key: body[key] for key in ON} for body in served.asked()]
    assert sent == [ON, OFF | {"presence_penalty": 0.0}]


@pytest.mark.parametrize("arguments", [["--raw"], ["--format", "cerebrum"]])
def test_recommended_think_is_no_error_in_a_format_without_reasoning(user: User, arguments: list[str]) -> None:
    user.row(ROW.replace('"on"', '"off"'))
    assert user.sampled("Q", *arguments) == [OFF]


@pytest.mark.parametrize(("recommended", "used"), [("1.0", 1.0), ("0", 0.7)])
def test_vote_uses_a_recommended_temperature_above_0(user: User, recommended: str, used: float) -> None:
    user.row(ROW.replace("temperature = 1.0", f"temperature = {recommended}"))
    assert user.sampled("Q", "--votes", "2") == 2 * [ON | {"temperature": used}]
    origin = "catalog" if used == 1.0 else "--votes"
    assert user.stats("--votes", "2").startswith(f"temperature {used:g} ({origin}), top_k 64 (model file)")


def batch(user: User, *rows: dict[str, Any], options: tuple[str, ...] = ()) -> tuple[Finished, list[dict[str, Any]]]:
    (user.home / "in.jsonl").write_text("".join(json.dumps({"prompt": "Q", **row}) + "\n" for row in rows))
    done = user.run("batch", "in.jsonl", "-o", "out.jsonl", *options)
    return done, [params.samplers for backend in user.script["backends"] for params in backend.params]


def test_batch_rows_that_turn_thinking_off_are_sampled_in_that_mode(user: User) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"think": "off"},
        {"think": "off", "top_k": 3},
        {"think": 9, "temperature": 0.2},
        {"think": None},
    ]
    done, sampled = batch(user, *rows, options=("--parallel", "1"))
    assert done.code == 0, done.err
    expected = [ON, OFF, OFF | {"top_k": 3}, ON | {"temperature": 0.2}, ON]
    assert sorted(map(str, sampled)) == sorted(map(str, expected))
    recorded = json.loads((user.home / "out.jsonl.meta.json").read_text())["fingerprint"]
    assert {key: recorded[key] for key in ON} == ON
    assert (recorded["think"], recorded["no_thinking"]) == ("on", OFF)


def test_batch_votes_sample_in_the_mode_of_each_row(user: User) -> None:
    user.row(ROW.replace("temperature = 0.7", "temperature = 0"))
    _, sampled = batch(user, {}, {"think": "off"}, options=("--votes", "2"))
    assert sorted(each["temperature"] for each in sampled) == [0.7, 0.7, 1.0, 1.0]


def test_batch_is_not_resumed_with_other_recommendations(user: User) -> None:
    batch(user, {})
    for row in (ROW.replace("1.0", "0.9"), ROW.replace("0.8", "0.85")):
        user.row(row)
        done, sampled = batch(user, {})
        assert (done.code, sampled) == (1, [])
        assert "out.jsonl was made with other settings: " in done.err


def test_think_switches_the_recommended_sampling(user: User) -> None:
    typed = "One\n/think off\nTwo\n/set temperature 0.1\nThree\n/set temperature default\n/think on\nFour\n"
    assert user.sampled("-q", typed=typed, command="chat") == [ON, OFF, OFF | {"temperature": 0.1}, ON]


def test_session_records_only_what_the_user_has_set(user: User) -> None:
    user.run("chat", "-q", "--session", "s", "--set", "top_k=3", typed="Q\n")
    assert CommandLine(user.home).params("s") == {"top_k": 3}
    assert CommandLine(user.home).messages("s")[1]["params"].items() >= (ON | {"top_k": 3}).items()
    assert user.sampled("-q", "--session", "s", "--think", "off", typed="R\n", command="chat") == [OFF | {"top_k": 3}]
    user.row(ROW.replace("0.7", "0.6"))
    changed = OFF | {"top_k": 3, "temperature": 0.6}
    assert user.sampled("-q", "-c", typed="S\n", command="chat") == [changed]
    assert re.search(r"\ntop_k +3", user.run("chat", "-c", typed="/set\n").err)
    lines = user.run("chat", "-c", typed="/set\n").err.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("top_k", "top_p"))] == ["session", "catalog"]
