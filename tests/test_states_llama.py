"""Saved states of the real llama.cpp: replies after restoring match an uninterrupted conversation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from asking import Reply, collect_replies
from test_llama import MODELS, STORY, assert_matches_single_run, options

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.state_store import DAMAGED, FOOTER, StateStore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TALE = STORY * 5  # longer than the sliding window
TRIMS = ("mistral_model", "chatml_model")


@contextmanager
def caching_engine(path: Path, directory: Path, *, slots: int = 1) -> Iterator[Engine]:
    """Start an engine on a real model, with a prompt cache."""
    engine = Engine(
        lambda tell, stop: open_llama(options(path, slots=slots), tell, stop),
        StateStore(directory, 10**8, path.name, "plain"),
    )
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


def greedy_reply(
    engine: Engine, prompt: tuple[int, ...], limit: int | None = 30, n: int = 1
) -> tuple[Reply, list[object]]:
    """Greedy reply to a prompt, and the notices."""
    events = list(engine.generate([Request(prompt, SamplingParams(max_tokens=limit), n=n)]))
    notices: list[object] = [event for event in events if isinstance(event, NoticeEvent)]
    return list(collect_replies(event for event in events if event not in notices).values())[-1], notices


def next_prompt(engine: Engine, prompt: tuple[int, ...], reply: Reply) -> tuple[int, ...]:
    """The next prompt of a conversation."""
    return (*prompt, *reply.ids, *engine.tokenize([Text(" And then? ")]))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    """Each of the tiny models."""
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("slots", [1, 3])
def test_restored_conversation_continues_identically(tmp_path: Path, model: Path, slots: int) -> None:
    with caching_engine(model, tmp_path / "unused", slots=slots) as engine:
        prompt = engine.tokenize([Text(TALE)])
        greedy_reply(engine, prompt[:1], 700)  # growing the memory would empty it
        first, _ = greedy_reply(engine, prompt)
        then = next_prompt(engine, prompt, first)
        through, _ = greedy_reply(engine, then, 200)
    with caching_engine(model, tmp_path, slots=slots) as engine:
        assert greedy_reply(engine, prompt, n=slots)[0].ids == first.ids
        engine.save_prompt_cache(64)
    assert len(list(tmp_path.glob("*.state"))) == 1
    with caching_engine(model, tmp_path, slots=slots) as engine:
        again, told = greedy_reply(engine, then, 200)
    assert told == []
    assert (again.ids, again.cached) == (through.ids, through.cached)
    assert again.cached >= len(prompt) + len(first.ids) - 1


@pytest.mark.parametrize("name", MODELS)
def test_restored_conversation_can_be_shortened(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    model = request.getfixturevalue(name)
    with caching_engine(model, tmp_path) as engine:
        prompt = engine.tokenize([Text(TALE)])
        greedy_reply(engine, prompt)
        engine.save_prompt_cache(64)
    for undone in (prompt, prompt[:-20], (*prompt[:-9], *engine_tokens(model, "But no."))):
        with caching_engine(model, tmp_path) as engine:
            reply, told = greedy_reply(engine, undone, 40)
        shared = common_prefix(prompt, undone[:-1])
        assert (reply.cached, told) == (shared if name in TRIMS else 0, [])
        assert_matches_single_run(model, undone, reply.ids)


def engine_tokens(model: Path, text: str) -> tuple[int, ...]:
    """Tokens of a text after other text."""
    with caching_engine(model, Path("/nowhere")) as engine:
        return engine.tokenize([Text("a"), Text(text)])[-4:]


def test_restoring_works_across_context_sizes(tmp_path: Path, model: Path) -> None:
    for first, second in ((5, None), (None, 5)):
        folder = tmp_path / str(first)
        with caching_engine(model, folder) as engine:
            prompt = engine.tokenize([Text(TALE)])
            reply, _ = greedy_reply(engine, prompt, first)
            then = next_prompt(engine, prompt, replace(reply, ids=reply.ids[:5]))
            engine.save_prompt_cache(64)
        with caching_engine(model, folder) as engine:
            reply, told = greedy_reply(engine, then, second)
        assert told == []
        assert reply.cached >= len(prompt) or (model.name, first) in (
            ("recurrent.gguf", None),
            ("sliding_window.gguf", None),
        )
        assert_matches_single_run(model, then, reply.ids[:40])


def test_damaged_state_is_reported_and_replies_are_unchanged(tmp_path: Path, model: Path) -> None:
    with caching_engine(model, tmp_path) as engine:
        prompt = engine.tokenize([Text(TALE)])
        first, _ = greedy_reply(engine, prompt)
        then = next_prompt(engine, prompt, first)
        engine.save_prompt_cache(64)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 64
    path.write_bytes(content)
    with caching_engine(model, tmp_path) as engine:
        again, told = greedy_reply(engine, then)
    assert (again.cached, told, path.exists()) == (0, [DAMAGED], False)
    assert_matches_single_run(model, then, again.ids)


def test_states_for_different_slot_counts_coexist(tmp_path: Path, chatml_model: Path) -> None:
    for slots, cached in ((1, 0), (2, 0), (1, 1), (2, 1)):
        with caching_engine(chatml_model, tmp_path, slots=slots) as engine:
            prompt = engine.tokenize([Text(TALE)])
            reply, told = greedy_reply(engine, prompt)
            engine.save_prompt_cache(64)
        assert (reply.cached, told) == (cached * (len(prompt) - 1), [])
    assert len(list(tmp_path.iterdir())) == 2


def test_state_rejected_by_llama_cpp_is_reported_and_evaluated(tmp_path: Path, chatml_model: Path) -> None:
    with caching_engine(chatml_model, tmp_path) as engine:
        prompt = engine.tokenize([Text(TALE)])
        kind = engine.backend.state_kind
        assert kind

    def save(path: Path) -> None:
        path.write_bytes(b"nothing of llama.cpp's")

    StateStore(tmp_path, 10**8, chatml_model.name, "plain").write(prompt, kind, 10, save)
    with caching_engine(chatml_model, tmp_path) as engine:
        reply, told = greedy_reply(engine, prompt)
    assert (reply.cached, told, list(tmp_path.iterdir())) == (0, [DAMAGED], [])


def test_states_directory_may_have_any_name(tmp_path: Path, chatml_model: Path) -> None:
    folder = tmp_path / os.fsdecode("Übung\n".encode() + b"\xff")
    for cached in (0, 1):
        with caching_engine(chatml_model, folder) as engine:
            prompt = engine.tokenize([Text(TALE)])
            assert greedy_reply(engine, prompt)[0].cached == cached * (len(prompt) - 1)
            engine.save_prompt_cache(64)


def test_full_disk_is_an_error_and_leaves_no_llama_state(tmp_path: Path, chatml_model: Path) -> None:
    code = (
        "import resource\n"
        "from test_states_llama import *\n"
        "from cerebrum_cli.core.errors import EngineError\n"
        "folder, room = Path(sys.argv[1]), int(sys.argv[3])\n"
        "with caching_engine(Path(sys.argv[2]), folder) as engine:\n"
        "    prompt = engine.tokenize([Text(TALE)])\n"
        "    greedy_reply(engine, prompt)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (room,) * 2)\n"
        "    try:\n        engine.save_prompt_cache(64)\n"
        "    except EngineError as error:\n        sys.stdout.write(f'{error.message}\\n')\n"
        "    sys.stdout.write(str(greedy_reply(engine, prompt)[0].cached == len(prompt) - 1))\n"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "benchmarks")))
    with caching_engine(chatml_model, tmp_path / "whole") as engine:
        greedy_reply(engine, engine.tokenize([Text(TALE)]))
        engine.save_prompt_cache(64)
    [state] = (tmp_path / "whole").iterdir()
    content = state.read_bytes()
    body, *_ = FOOTER.unpack(content[-FOOTER.size :])
    for room in (10, body // 2, body - 1, body, len(content) - 1):
        folder = tmp_path / str(room)
        done = subprocess.run(
            [sys.executable, "-c", code, folder, chatml_model, str(room)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=60,
        )
        problem = "incomplete write" if room == body - 1 else "File too large"  # llama.cpp ignores errors of fclose
        assert (done.stdout, done.stderr) == (f"{folder}: {problem}\nTrue", "")
        assert list(folder.iterdir()) == []


def test_long_rope_models_save_no_states(tmp_path: Path) -> None:
    """With LongRoPE, tokens have other keys in a context longer than the original one."""
    for scaling, files in ((None, 0), ("yarn", 1)):
        keys = {**tiny_models.LLAMA.keys, "rope.scaling.original_context_length": "original"}
        metadata = {**tiny_models._bpe_metadata(), **({"llama.rope.scaling.type": scaling} if scaling else {})}
        sizes = {**tiny_models._transformer_sizes(tiny_models.Shape(), 2048), "original": 256}
        path = tmp_path / f"{scaling}.gguf"
        tiny_models._write(path, replace(tiny_models.LLAMA, keys=keys), sizes, metadata, 0)
        with caching_engine(path, tmp_path / "states") as engine:
            greedy_reply(engine, engine.tokenize([Text(TALE)]))
            engine.save_prompt_cache(64)
        assert len(list((tmp_path / "states").glob("*"))) == files
