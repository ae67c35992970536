"""Sampling that a model's file and its row in models.toml recommend: which value wins, and where it is reported."""

from __future__ import annotations

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


# Which value wins.


def test_question_is_sampled_as_the_model_recommends(user: User, chatml_model: Path) -> None:
    assert user.sampled("Q") == user.sampled("Q", "--think", "on") == user.sampled("Q", "--think", "9") == [ON]
    assert user.sampled("Q", "--think", "off") == [OFF]
    assert user.sampled("Q", "--top-k", "3") == [ON | {"top_k": 3}]
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
def test_recommended_think_is_no_error_in_a_format_without_thoughts(user: User, arguments: list[str]) -> None:
    user.row(ROW.replace('"on"', '"off"'))
    assert user.sampled("Q", *arguments) == [OFF]


# Votes.


@pytest.mark.parametrize(("recommended", "used"), [("1.0", 1.0), ("0", 0.7)])
def test_vote_uses_a_recommended_temperature_above_0(user: User, recommended: str, used: float) -> None:
    user.row(ROW.replace("temperature = 1.0", f"temperature = {recommended}"))
    assert user.sampled("Q", "--votes", "2") == 2 * [ON | {"temperature": used}]
    origin = "catalog" if used == 1.0 else "--votes"
    assert user.stats("--votes", "2").startswith(f"temperature {used:g} ({origin}), top_k 64 (model file)")
    assert user.sampled("-q", typed="Q\n/votes 2\n", command="chat")[1:] == 2 * [ON | {"temperature": used}]


# Batches.


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
    assert {key: recorded[key.replace("_", " ")] for key in ON} == ON
    assert (recorded["think"], recorded["no thinking"]) == ("on", OFF)


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
        assert "out.jsonl was made with another " in done.err


# Chats.


def test_think_switches_the_recommended_sampling(user: User) -> None:
    typed = "One\n/think off\nTwo\n/set temperature 0.1\nThree\n/set temperature\n/think on\nFour\n"
    assert user.sampled("-q", typed=typed, command="chat") == [ON, OFF, OFF | {"temperature": 0.1}, ON]
    done = user.run("chat", typed="/set temperature 0.1\n/set temperature\n/think off\n/set temperature\n/set think\n")
    shown = [line for line in done.err.splitlines() if line.startswith(("temperature ", "think "))]
    assert shown == [
        "temperature  0.1",
        "temperature  1  catalog",
        "think  off",
        "temperature  0.7  catalog",
        "think  on  catalog",
    ]


def test_session_records_only_what_the_user_has_set(user: User) -> None:
    user.run("chat", "-q", "--session", "s", "--top-k", "3", typed="Q\n")
    session = json.loads(run_here({}, user.home, "sessions", "show", "s", "--json").out)
    assert session["params"] == {"top_k": 3}
    assert session["messages"][1]["params"].items() >= (ON | {"top_k": 3}).items()
    assert user.sampled("-q", "--session", "s", "--think", "off", typed="R\n", command="chat") == [OFF | {"top_k": 3}]
    user.row(ROW.replace("0.7", "0.6"))
    changed = OFF | {"top_k": 3, "temperature": 0.6}
    assert user.sampled("-q", "-c", typed="S\n", command="chat") == [changed]
    assert re.search(r"\ntop_k +3", user.run("chat", "-c", typed="/params\n").err)
    lines = user.run("chat", "-c", typed="/params\n").err.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("top_k", "top_p"))] == ["session", "catalog"]


# Reports.


def test_stats_say_where_each_value_comes_from(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user.stats() == (
        "temperature 1 (catalog), top_k 64 (model file), top_p 0.95 (model file), min_p 0.05 (default), "
        "presence_penalty 1.5 (catalog)"
    )
    config = "top_k = 1\ntop_p = 0.9\n[prompts.p]\nmin_p = 0.1\nrepeat_penalty = 1.2\n"
    (user.config / "config.toml").write_text(config)
    for name, value in (("TOP_K", "9"), ("TYPICAL_P", "0.9"), ("MIN_P", "0.2")):
        monkeypatch.setenv(f"CEREBRUM_{name}", value)
    assert user.stats("-p", "p", "--think", "off", "--set", "repeat_penalty=1.1") == (
        "temperature 0.7 (catalog), top_k 9 (CEREBRUM_TOP_K), top_p 0.9 (config.toml), min_p 0.1 (saved prompt), "
        "typical_p 0.9 (CEREBRUM_TYPICAL_P), repeat_penalty 1.1 (command line)"
    )
    assert ", top_k 3 (command line), " in user.stats("--set", "top_k=3")


def test_show_states_the_sampling_of_both_modes(user: User, chatml_model: Path) -> None:
    def shown(model: Path, *options: str) -> str:
        done = run_here({}, user.home, "show", model, *options)
        assert done.code == 0, done.err
        return done.out

    (user.config / "config.toml").write_text("min_p = 0.1\n")
    lines = [line for line in shown(user.model).splitlines() if line.startswith(("ask ", "sampling"))]
    assert lines == [
        "ask                    format embedded, context 2048, think on",
        "sampling, thinking     temperature 1 (catalog), top_k 64 (model file), top_p 0.95 (model file), "
        "min_p 0.1 (config.toml), presence_penalty 1.5 (catalog)",
        "sampling, no thinking  temperature 0.7 (catalog), top_k 64 (model file), top_p 0.8 (catalog), "
        "min_p 0.1 (config.toml)",
    ]
    sampling = json.loads(shown(user.model, "--json"))["sampling"]
    values = {mode: {key: each["value"] for key, each in samplers.items()} for mode, samplers in sampling.items()}
    assert values == {"thinking": ON | {"min_p": 0.1}, "no_thinking": OFF | {"min_p": 0.1}}
    assert sampling["no_thinking"]["top_p"] == {"value": 0.8, "origin": "catalog"}
    assert "\nsampling            temperature 0 (default)\n" in shown(chatml_model)
    assert "\nsampling            temperature 0 (default)\n" in shown(Path("cerebrum-7b"))


def test_show_states_what_a_question_uses(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> dict[str, Any]:
        found: dict[str, Any] = run_here({}, user.home, "show", user.model, "--json").object["ask"]
        return found

    assert asked() == {"format": "embedded", "context": 2048, "think": "on"}
    (user.config / "config.toml").write_text('think = "off"\nctx = 512\nformat = "cerebrum"\n')
    assert asked() == {"format": "cerebrum", "context": 512, "think": "off"}
    monkeypatch.setenv("CEREBRUM_THINK", "100")
    monkeypatch.setenv("CEREBRUM_CHAT_TEMPLATE", "/own.jinja")
    assert asked() == {"format": "embedded", "context": 512, "think": "100", "chat_template": "/own.jinja"}
