"""The commands on vLLM and SGLang with the bundled model behind them, compared with the same on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, assert_error
from llama_engines import open_engine
from llama_server import LlamaServer
from model_servers import ModelServer
from sglang_server import SglangServer
from vllm_server import VllmServer

from cerebrum_cli.doctor.selftest import ANSWER, NANO, QUESTION
from cerebrum_cli.engine.local import LocalEngine

pytestmark = pytest.mark.slow

BUILDS: dict[type[ModelServer], tuple[str, str]] = {
    VllmServer: ("vLLM", "vLLM, build 0.32.0"),
    SglangServer: ("SGLang", "SGLang, build 0.5.23"),
}
other_kinds = pytest.mark.parametrize("kind", BUILDS)


@pytest.fixture(scope="module")
def nano() -> Iterator[LocalEngine]:
    """The bundled model in llama.cpp."""
    with open_engine(NANO, slots=4) as engine:
        yield engine


def schema_file(directory: Path) -> Path:
    """A JSON schema whose answers are short."""
    path = directory / "schema.json"
    path.write_text('{"type":"object","properties":{"a":{"enum":[17,42]}},"required":["a"]}')
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The answers of a batch by row, without their times."""
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: str(row["id"]))


@pytest.mark.parametrize("kind", [LlamaServer, *BUILDS])
def test_endpoint_kinds_are_checked_by_doctor(
    new_user: CommandLine, nano: LocalEngine, kind: type[ModelServer]
) -> None:
    with kind(nano) as server:
        done = new_user.run("doctor", "--json", "--endpoint", server.url, "-m", NANO)
    results = {result["name"]: result for result in done.object}
    assert {name for name, result in results.items() if result["status"] != "ok"} == {"context"}, done.out
    assert results["reply"]["detail"].startswith(f"{QUESTION} {ANSWER} (prompt ")
    if kind in BUILDS:
        assert results["server"]["detail"] == BUILDS[kind][1]


def test_endpoint_kinds_doctor_reports_seeds_without_effect(new_user: CommandLine, nano: LocalEngine) -> None:
    with SglangServer(nano) as server:
        server.is_deterministic = False
        done = new_user.run("doctor", "--json", "--endpoint", server.url, "-m", NANO)
    assert {result["name"]: result["status"] for result in done.object}["seeds"] == "warning"


@other_kinds
@pytest.mark.parametrize("has_schema", [False, True])
def test_endpoint_kinds_batch_has_the_local_answers(
    new_user: CommandLine, nano: LocalEngine, kind: type[ModelServer], has_schema: bool, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("".join(f"What is {number} plus 17?\n" for number in range(8)))
    command: tuple[str | Path, ...] = ("batch", questions, "-m", NANO, "--seed", "5", "--max-tokens", "40")
    if has_schema:
        command += ("--schema", schema_file(tmp_path))
    with kind(nano) as server:
        done = new_user.run(*command, "-o", tmp_path / "remote.jsonl", "--endpoint", server.url)
    assert done.code == 0, done.err
    assert done.err.count(f"{BUILDS[kind][0]} serves the model's original weights") == 1
    assert new_user.run(*command, "-o", tmp_path / "local.jsonl").code == 0
    assert rows(tmp_path / "remote.jsonl") == rows(tmp_path / "local.jsonl")


@other_kinds
def test_endpoint_kinds_prompt_too_long_is_an_error(
    new_user: CommandLine, nano: LocalEngine, kind: type[ModelServer], tmp_path: Path
) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("What is 17 plus 25?\n" + "long " * 3000 + "\n")
    with kind(nano) as server:
        ask = new_user.run("ask", "-m", NANO, "--endpoint", server.url, "long " * 3000)
        done = new_user.run("batch", questions, "-m", NANO, "-o", tmp_path / "out.jsonl", "--endpoint", server.url)
        fitting = new_user.run("ask", "-m", NANO, "--endpoint", server.url, "--no-log", QUESTION)
    assert_error(ask, 4, "tokens, but the context has 2048")
    errors = [row["error"] and row["error"]["type"] for row in rows(tmp_path / "out.jsonl")]
    assert (done.code, errors) == (6, [None, "context_length_exceeded"])
    assert fitting.out.strip() == ANSWER


def test_endpoint_kinds_ignored_schema_is_an_error(new_user: CommandLine, nano: LocalEngine, tmp_path: Path) -> None:
    with VllmServer(nano) as server:
        server.ignores_grammar = True
        ask = new_user.run("ask", "-m", NANO, "--endpoint", server.url, "--schema", schema_file(tmp_path), QUESTION)
    assert_error(ask, 1, "does not match the grammar or schema", "update the server")
