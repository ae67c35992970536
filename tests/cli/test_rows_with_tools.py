"""Functions that a model may call in many rows, where transcripts/row_functions.txt does not reach."""

import json
from pathlib import Path
from typing import Any

import pytest
from installations import installation
from scripted_command import app_for, run_here

from cerebrum_cli import Reply, open_model

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
ROWS = {"Oslo?": f"I look.\n{CALL}", "Dry in Oslo.": "No coat in Oslo.", "None?": "No call."}


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "functions.py"
    path.write_text('def weather(city: str) -> str:\n    """Forecast for a city."""\n    return f"Dry in {city}."\n')
    return path


def test_row_whose_results_do_not_fit_is_refused_alone(functions: Path, chatml_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Oslo?\nNone?\n")
    script: dict[str, Any] = {"rows": ROWS, "seeds": ["ok"]}

    def batch() -> list[dict[str, Any]]:
        arguments = (tmp_path / "in.txt", "-o", "-", "-m", chatml_model, "--tool", functions, "-y")
        return [json.loads(line) for line in run_here(script, tmp_path, "batch", *arguments).out.splitlines()]

    script["context"] = batch()[1]["prompt_tokens"] + 80  # room for a call, but not for its result
    refused, answered = batch()
    assert refused["error"]["type"] == "context_length_exceeded"
    assert (answered["text"], answered["error"]) == ("No call.", None)


def test_replies_of_the_library_call_functions(functions: Path, chatml_model: Path, tmp_path: Path) -> None:
    opener = app_for({"rows": ROWS, "seeds": ["ok"]}, tmp_path).open_file
    with open_model(str(chatml_model), installation=installation(opener, tmp_path)) as model:
        replies = {reply.index: reply for reply in model.replies(["None?", "Oslo?"], tools=[str(functions)])}
    none, oslo = replies[0], replies[1]
    assert isinstance(none, Reply) and isinstance(oslo, Reply)
    assert (none.text, none.calls) == ("No call.", ())
    assert [str(made) for made in oslo.calls] == ["weather(city='Oslo')"]
    assert (oslo.message.content, oslo.message.rounds[0].content) == ("No coat in Oslo.", "I look.")
