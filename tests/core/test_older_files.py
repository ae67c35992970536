"""Compatibility with files that earlier versions wrote; tests/data/version_1/README.md lists them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import pytest
from scripted_command import run_here, runtime_for

from cerebrum_cli.chat.history import load_conversation
from cerebrum_cli.chat.store import Store
from cerebrum_cli.cli.app import Runtime, devices_file, llama_opener
from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.settings import Settings, fold
from cerebrum_cli.doctor.selftest import NANO
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.load_options import LoadOptions
from cerebrum_cli.inference.profiles import ProfileStore
from cerebrum_cli.main import run
from cerebrum_cli.models.model import Model
from cerebrum_cli.models.registry import Registry
from cerebrum_cli.terminal.streams import Streams

VERSION_1 = Path(__file__).parents[1] / "data" / "version_1"
SHA256 = "938b12ac45814c11d06152ed2cf7116cc51a1a9816fea7b004d0cedc23147e1d"  # of nano.gguf
IDENTITY = f"{SHA256} 3325056"
MACHINE, BUILD = "Some Processor, 8 processors, 33 GB, no GPU", "0123456789abcdef"  # as the profile has them
LLAMA_BUILD = "3c0b30-f39a4a40"  # the library that wrote the saved state: its size and CRC-32

DEFAULTS = {"temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
QUESTION = "What is 6 plus 6?"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Create the home of a user whose registry was written by version 1 and contains the model nano."""
    text = (VERSION_1 / "registry.json").read_text(encoding="utf-8").replace("@HOME@", str(tmp_path))
    models = tmp_path / "data" / "cerebrum" / "models"
    models.mkdir(parents=True)
    (models / "registry.json").write_text(text, encoding="utf-8")
    [modified] = (each["mtime_ns"] for each in json.loads(text)["models"] if each["name"] == "nano")
    os.utime(
        copy(NANO, tmp_path / "nano.gguf"), ns=(modified, modified)
    )  # the recorded digest is valid for this time only
    return tmp_path


@pytest.fixture
def old_store(home: Path) -> Iterator[Store]:
    """Open a session database of version 1."""
    directory = home / "data" / "cerebrum" / "sessions"
    directory.mkdir()
    with closing(Store(Path(copy(VERSION_1 / "sessions.db", directory)))) as store:
        yield store


def streams(out: StringIO, err: StringIO, piped: bytes = b"") -> Streams:
    """Create the streams of a command that runs in this process, none of them a terminal."""
    return Streams(out, err, BytesIO(piped) if piped else None, False, False, False)


def texts(store: Store, name: str) -> list[str]:
    """Get the texts of a session's messages."""
    session = store.find(name)
    assert session
    return [stored.message.content for stored in store.messages(session)]


# config.toml


def test_config_of_version_1_sets_every_setting() -> None:
    assert fold(read_config(VERSION_1 / "config.toml").settings) == Settings(
        model="nano",
        system="Du bist höflich.",
        format="cerebrum",
        max_tokens=200,
        temperature=0.7,
        top_k=30,
        top_p=0.9,
        min_p=0.02,
        repeat_penalty=1.1,
        seed=42,
        stop=("END", "\n\n\n"),
        ctx=4096,
        threads=3,
        gpu_layers="12",
        overflow="stop",
        cache_gb=1.5,
    )


# Models


def test_registry_of_version_1_lists_models_of_every_source(home: Path) -> None:
    registry = Registry(home / "data" / "cerebrum" / "models")
    entries = registry.entries()
    assert registry.default == "nano"
    assert [(entry.name, entry.source) for entry in entries] == [
        ("nano", "local"),
        ("one", "local"),
        ("both", "merge"),
        ("wide", "local"),
        ("wide:Q8_0", "derived"),
        ("tiny", "hub"),
        ("starter", "package"),
    ]
    derived = entries[4]
    assert derived.path == home / "cache/cerebrum/encodings/176a1d48001e2ae3/wide.as-Q8_0.gguf"
    assert (derived.size, derived.sha256[:8], derived.mtime_ns) == (19178560, "f4b405dd", 1795237949402189023)
    assert derived.original == f"{entries[3].sha256} {entries[3].size}"
    assert [entry.original for entry in entries if entry is not derived] == [None] * 6
    stored = registry.digest(home / "nano.gguf")
    assert stored and (entries[0].sha256, stored.sha256) == (SHA256, SHA256)


def test_registry_of_version_1_can_be_changed(home: Path) -> None:
    registry = Registry(home / "data" / "cerebrum" / "models")
    before = registry.entries()
    removed = registry.remove("both")
    registry.set_default("starter")
    assert (removed, registry.default) == (before[2], "starter")
    assert registry.entries() == (*before[:2], *before[3:])


def test_registry_of_version_1_is_listed_by_the_command(home: Path) -> None:
    rows = {row["name"]: row for row in run_here({}, home, "list", "--json").object}
    assert rows["nano"]["default"] is True
    assert rows["nano"]["error"] is None
    assert (rows["nano"]["path"], rows["nano"]["size"]) == (str(home / "nano.gguf"), 3325056)
    assert [rows[name]["source"] for name in ("nano", "both", "tiny", "starter")] == [
        "local",
        "merge",
        "hub",
        "package",
    ]


# Sessions


def test_sessions_of_version_1_have_their_messages(old_store: Store) -> None:
    assert [(summary.session.name, summary.session.origin, summary.messages) for summary in old_store.summaries()] == [
        ("nano-talk", "chat", 6),
        ("story", "chat", 2),
        ("sums", "chat", 12),
        ("france-2", "chat", 6),
        ("france", "chat", 4),
        ("capitals", "import", 4),
        ("add-three-and-four", "ask", 2),
        ("what-is-3-4", "ask", 2),
    ]
    assert texts(old_store, "france") == [
        "What is the capital of France?",
        "The capital of France is Paris.",
        "Name one French painter.",
        "One French painter I'm most proud of is Vincent van Gogh. He's a legendary artist known for his bold and"
        " expressive brushwork and innovative use of color.",
    ]
    assert texts(old_store, "france-2")[:5] == [*texts(old_store, "france"), "And one composer."]
    assert texts(old_store, "capitals") == ["What is the capital of Japan?", "東京 (Tokyo).", "And of Peru?", "Lima."]
    assert texts(old_store, "nano-talk") == [
        "What is 12 plus 30?",
        "22 plus 30 makes 52. The answer is 62.",
        "Say hello.",
        "I can only do small sums.",
        "What is 4 plus 5?",
        "4 plus 6 makes 10. The answer is 10.",
    ]


def test_session_of_version_1_has_the_settings_of_each_reply(home: Path, old_store: Store) -> None:
    shown = run_here({}, home, "sessions", "show", "add-three-and-four", "--json").object
    sampled = {**DEFAULTS, "temperature": 0.6, "max_tokens": None, "stop": ["END"]}
    assert (shown["model"], shown["format"], shown["system_prompt"]) == ("starter", "embedded", "Think first.")
    assert shown["params"] == sampled
    question, reply = shown["messages"]
    assert (question["role"], question["content"], question["seed"]) == ("user", "Add three and four.", None)
    assert (reply["role"], reply["content"]) == ("assistant", "The sum is 7.\n\nFinal answer: 7")
    assert (reply["reasoning"], reply["finish_reason"], reply["seed"]) == ("Three and four are seven.", "stop", 11)
    assert (reply["model"], reply["format"], reply["params"]) == ("starter", "embedded", sampled)
    timings = reply["timings"]
    assert [timings[key] for key in ("prompt_tokens", "cached_tokens", "decode_steps")] == [22, 0, 51]
    assert timings["load_s"] == pytest.approx(0.1183, abs=1e-4)
    assert shown["created"] == reply["created"] == "2026-11-21T05:14:14+00:00"


def test_session_of_version_1_has_tokens_and_dropped_messages(old_store: Store) -> None:
    sums, story = old_store.find("sums"), old_store.find("story")
    assert sums and story
    messages = old_store.messages(sums)
    assert messages[1].message.tokens is not None
    assert len(messages[1].message.tokens) == 15
    assert messages[0].message.tokens is None
    assert [stored.message.content for stored in messages if stored.id == sums.first] == ["What is 5 + 5?"]
    interrupted = old_store.messages(story)[1]  # the process was killed during this reply
    assert interrupted.message.content.startswith("Once upon a time, in a land far away")
    assert interrupted.metadata.finish_reason is None
    assert interrupted.message.tokens


def test_session_of_version_1_is_replayed_as_text(home: Path, old_store: Store) -> None:
    """Its replies do not tell which vocabulary their tokens belong to."""
    session = old_store.find("nano-talk")
    assert session and session.model == "nano"
    [entry] = [each for each in Registry(home / "data" / "cerebrum" / "models").entries() if each.name == "nano"]
    conversation = load_conversation(old_store, session, Model("nano", (entry.path,), file=entry))
    assert [message.content for message in conversation.messages] == texts(old_store, "nano-talk")
    assert {message.tokens for message in conversation.messages} == {None}


def test_session_of_version_1_is_searched_and_continued(old_store: Store) -> None:
    assert {hit.session.name for hit in old_store.search("French painter")} == {"france-2"}
    assert [hit.session.name for hit in old_store.search("東京")] == ["capitals"]
    session = old_store.find("capitals")
    assert session
    old_store.add_message(session, Message("user", "And of Chile?"))
    latest = old_store.latest()
    assert latest and latest.name == "capitals"
    assert texts(old_store, "capitals")[3:] == ["Lima.", "And of Chile?"]


# The prompt cache on disk


def test_saved_state_of_version_1_is_loaded(home: Path, old_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore a saved state.

    Its key contains the build of llama.cpp that wrote it, so the test reports that build as the installed one. The
    rest of the key (model, prompt format, cache types) is computed by the current code.
    """
    monkeypatch.setattr("cerebrum_cli.engine.llama.state._build", lambda: LLAMA_BUILD)
    copytree(VERSION_1 / "states", home / "cache" / "cerebrum" / "states")

    def ask(*arguments: str) -> Any:
        out, err = StringIO(), StringIO()
        runtime = replace(
            runtime_for({}, home, streams(out, err)),
            open_backend=lambda options: llama_opener(options, devices_file(home / "data" / "cerebrum")),
        )
        options = ("--json", "--threads", "1", "--gpu-layers", "0", *arguments)
        assert run(["ask", "-c", QUESTION, *options], runtime) == 0
        assert err.getvalue() == ""  # so the state was not reported as damaged
        return json.loads(out.getvalue())

    evaluated = ask("--no-cache", "--no-log")
    restored = ask()
    assert (evaluated["model"], evaluated["prompt_tokens"], evaluated["cached_tokens"]) == ("nano", 113, 0)
    assert (restored["prompt_tokens"], restored["cached_tokens"]) == (113, 99)
    assert restored["text"] == evaluated["text"]
    assert texts(old_store, "nano-talk")[6:] == [QUESTION, restored["text"]]


# Profiles


def test_profile_of_version_1_is_found(home: Path) -> None:
    profile = ProfileStore(VERSION_1 / "profiles", MACHINE, BUILD).find(IDENTITY)
    assert profile
    assert profile.created == "2026-11-20T20:58:34+00:00"
    assert {name: tuned.step_costs for name, tuned in profile.uses.items()} == dict.fromkeys(("chat", "ask", "batch"))
    chat, batch = profile.uses["chat"], profile.uses["batch"]
    assert (chat.gain, chat.agreement, profile.uses["ask"].agreement) == (1.17, 0.984, None)
    speeds, usual = batch.speeds, batch.baseline
    assert (speeds.load_s, speeds.prompt, speeds.generate, speeds.memory) == (1.4, 48.0, 52.0, 6_100_000_000)
    assert (usual.load_s, usual.prompt, usual.generate, usual.memory) == (1.5, 44.0, 40.0, 6_000_000_000)


@pytest.mark.parametrize(
    ("arguments", "piped", "expected"),
    [
        (
            ["chat"],
            b"hello\n",
            {
                "repack": True,
                "n_threads": 4,
                "n_threads_batch": 6,
                "n_ubatch": 64,
                "flash_attention": True,
                "cache_type_k": "q8_0",
                "cache_type_v": "q8_0",
                "gpu_layers": "12",
                "slots": 16,
            },
        ),
        (["ask", "hello"], b"", {"n_threads": 5, "n_ubatch": None, "slots": 1}),
        (["ask", "hello " * 600], b"", {"repack": True, "n_threads": 5, "n_ubatch": None, "slots": 1}),
        (
            ["batch", "-", "--shape", "txt", "-o", "-"],
            b"one\ntwo\nthree\n",
            {"n_threads_batch": 7, "flash_attention": False, "slots": 2},
        ),
    ],
    ids=["chat", "ask", "ask-long", "batch"],
)
def test_profile_of_version_1_decides_how_a_model_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], piped: bytes, expected: dict[str, object]
) -> None:
    """Load a model with the settings of a profile.

    A profile is valid only for the machine and the build it was measured with, so the test passes those of the fixture.
    """
    profiles = Path(copytree(VERSION_1 / "profiles", home / "data" / "cerebrum" / "profiles"))
    monkeypatch.setattr(Runtime, "profiles", lambda *_: ProfileStore(profiles, MACHINE, BUILD))
    opened: list[LoadOptions] = []
    runtime = runtime_for({"rows": {}, "seeds": ["ok"]}, home, streams(StringIO(), StringIO(), piped))

    def open_backend(options: LoadOptions, scripted: Any = runtime.open_backend) -> OpenBackend:
        opened.append(options)
        opener: OpenBackend = scripted(options)
        return opener

    assert run([*arguments, "-m", "nano"], replace(runtime, open_backend=open_backend)) == 0
    tuned = opened[-1]
    assert {name: getattr(tuned, name) for name in expected} == expected
    assert tuned.path == home / "nano.gguf"


# Batches


def test_batch_of_version_1_is_resumed(home: Path) -> None:
    for name in ("sums.jsonl", "answers.jsonl.partial", "answers.jsonl.meta.json"):
        copy(VERSION_1 / "batch" / name, home)
    finished = rows_of(home / "answers.jsonl.partial")
    script: dict[str, Any] = {"rows": {}, "seeds": ["answered today"]}
    options = ("-m", "nano", "-s", "Do sums.", "-n", "24", "--seed", "3")
    done = run_here(script, home, "batch", home / "sums.jsonl", "-o", home / "answers.jsonl", *options)
    assert done.code == 6, done.err
    rows = rows_of(home / "answers.jsonl")
    assert [(row["id"], row["seed"]) for row in rows[:5]] == [
        ("sum-1", 3),
        ("sum-2", 4),
        ("sum-3", 5),
        ("sum-1", 6),
        ("sum-5", 7),
    ]
    old = [row for row in rows if row["text"] != "answered today" and row["error"] is None]
    assert sorted(old, key=str) == sorted(finished, key=str)
    assert [row["id"] for row in rows if row["error"]] == ["none"]
    assert (len(rows), len(old)) == (30, 9)
    [backend] = script["backends"]
    assert len(backend.params) == 30 - 9 - 1  # nothing was answered a second time
    assert not (home / "answers.jsonl.partial").exists()


def test_complete_batch_of_version_1_is_left_alone(home: Path) -> None:
    for name in ("words.jsonl", "any.gbnf", "voted.jsonl", "voted.jsonl.meta.json"):
        copy(VERSION_1 / "batch" / name, home)
    sampling = ("--temperature", "0.8", "--top-k", "30", "--top-p", "0.9", "--min-p", "0.01")
    more = ("--repeat-penalty", "1.1", "--seed", "9", "--stop", "!", "--ctx", "256", "--grammar", home / "any.gbnf")
    votes = ("--votes", "auto:2..4", "--no-early-stop", "--template", "What is {word} plus one?")
    script: dict[str, Any] = {"rows": {}, "seeds": ["answered today"]}
    output = home / "voted.jsonl"
    done = run_here(script, home, "batch", home / "words.jsonl", "-o", output, "-m", "nano", *sampling, *more, *votes)
    assert done.code == 6, done.err
    assert "backends" not in script
    for name in ("voted.jsonl", "voted.jsonl.meta.json"):
        assert (home / name).read_bytes() == (VERSION_1 / "batch" / name).read_bytes()
    assert [row["final_answer"] for row in rows_of(output)] == ["29", None, "20"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a result, or of a partial file without the row numbers it adds."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "row"} for row in rows]
