"""Sampling that a model's file and its row in models.toml recommend, as llama.cpp gets it on this machine.

Which value wins, what servers are sent and what batches and sessions record: transcripts/recommended_sampling.txt.
"""

from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from scripted_command import run_here
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


def sampled(home: Path, model: Path, *arguments: str, row: str = ROW) -> list[dict[str, Any]]:
    """Sampling of each reply to a question."""
    (CommandLine(home).config / "models.toml").write_text(row, encoding="utf-8")
    script: dict[str, Any] = {"reply": "The answer is 4."}
    done = run_here(script, home, "ask", "-m", model, "Q", *arguments)
    assert done.code == 0, done.err
    return [params.samplers for backend in script["backends"] for params in backend.params]


@pytest.mark.parametrize(
    ("arguments", "samplings"),
    [
        pytest.param("", [ON], id="recommended"),
        pytest.param("--think on", [ON], id="thinking"),
        pytest.param("--think 9", [ON], id="limited thinking"),
        pytest.param("--think off", [OFF], id="no thinking"),
        pytest.param("--set top_k=3", [ON | {"top_k": 3}], id="set"),
        pytest.param("--temperature 0", [{"temperature": 0.0, "presence_penalty": 1.5}], id="greedy"),
        pytest.param("--votes 2", [ON, ON], id="votes"),
    ],
)
def test_question_is_sampled_as_the_model_recommends(
    tmp_path: Path, arguments: str, samplings: list[dict[str, Any]]
) -> None:
    model = write_chatml(tmp_path / "thinker.gguf", chat_template=TEMPLATES["qwen3"], sampling=FILE)
    assert sampled(tmp_path, model, *arguments.split()) == samplings


def test_question_is_sampled_as_the_file_recommends_without_a_row(tmp_path: Path, chatml_model: Path) -> None:
    model = write_chatml(tmp_path / "thinker.gguf", chat_template=TEMPLATES["qwen3"], sampling=FILE)
    expected = {"temperature": 0.5, "top_k": 64, "top_p": 0.95, "min_p": 0.05}
    assert sampled(tmp_path, model, row="") == [expected]
    assert sampled(tmp_path, chatml_model) == [{"temperature": 0.0}]
