"""Functions that a model may call in many rows: batches, evaluations and the library's `replies`."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished, assert_error
from installations import installation
from scripted_command import app_for, backend_for, run_here
from server_kinds import LlamaServer

from cerebrum_cli import Reply, open_model

FUNCTIONS = '''
def weather(city: str) -> str:
    """Forecast for a city."""
    return f"Dry in {city}."
'''


def call(city: str) -> str:
    return json.dumps({"name": "weather", "arguments": {"city": city}})


ROWS = {
    "Oslo?": f"I look.\n{call('Oslo')}",
    "Dry in Oslo.": "No coat in Oslo.",
    "Both?": call("Rome"),
    "Dry in Rome.": call("Bern"),
    "Dry in Bern.": "Neither.",
    "Again?": call("Linz"),
    "Dry in Linz.": call("Linz"),
    "Ever?": call("a"),
    **{f"Dry in {city}.": call(city + "a") for city in ("a", "aa", "aaa", "aaaa")},
    "None?": "No call.",
}
QUESTIONS = [question for question in ROWS if question.endswith("?")]
CALLS = {
    "Oslo?": ["Oslo"],
    "Both?": ["Rome", "Bern"],
    "Again?": ["Linz"],
    "Ever?": ["a", "aa", "aaa", "aaaa", "aaaaa"],
    "None?": [],
}
TEXTS = {"Oslo?": "No coat in Oslo.", "Both?": "Neither.", "None?": "No call."}


class Rows:
    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.functions = home / "functions.py"
        self.functions.write_text(FUNCTIONS)
        self.script: dict[str, Any] = {"rows": dict(ROWS), "seeds": ["ok"], "backends": []}

    def run(self, command: str, *arguments: str | Path) -> Finished:
        options = ("-m", self.model, "--tool", self.functions, "-y")
        return run_here(self.script, self.home, command, *arguments, *options)

    def write(self, name: str, rows: list[Any]) -> Path:
        path = self.home / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    def batch(self, *arguments: str | Path) -> Finished:
        return self.run("batch", self.write("in.jsonl", [{"prompt": question} for question in QUESTIONS]), *arguments)


@pytest.fixture
def rows(tmp_path: Path, chatml_model: Path) -> Rows:
    return Rows(tmp_path, chatml_model)


@pytest.mark.parametrize("where", ["stream", "file", "server"])
def test_batch_runs_calls_and_continues(rows: Rows, where: str) -> None:
    output = "-" if where == "stream" else rows.home / "out.jsonl"
    with LlamaServer(backend_for(rows.script, 1).model, context_size=5000) as server:
        more = ("--endpoint", server.url, "--parallel", "1") if where == "server" else ()
        done = rows.batch("-o", output, *more)
    assert done.code == 0, done.err
    lines = done.out if isinstance(output, str) else output.read_text()
    answers = {answer["prompt"]: answer for answer in map(json.loads, lines.splitlines())}
    called = {question: [made["arguments"]["city"] for made in answers[question]["calls"]] for question in answers}
    assert called == CALLS and [*answers] == QUESTIONS
    assert answers["Oslo?"]["calls"] == [{"name": "weather", "arguments": {"city": "Oslo"}, "result": "Dry in Oslo."}]
    assert {question: answers[question]["text"] for question in TEXTS} == TEXTS
    assert answers["Oslo?"]["completion_tokens"] == len(ROWS["Oslo?"]) + len(TEXTS["Oslo?"])
    assert "the model repeated a call of weather" in done.err
    assert done.err.count("no more calls after 5 rounds") == 1


def test_batch_resumes_with_the_same_functions_only(rows: Rows) -> None:
    output = rows.home / "out.jsonl"
    rows.batch("-o", output)
    written = output.read_bytes()
    assert rows.batch("-o", output).code == 0
    assert output.read_bytes() == written
    rows.functions.write_text(FUNCTIONS.replace("Dry", "Wet"))
    assert_error(rows.batch("-o", output), 1, "other settings: set of functions (weather, ")


def test_row_with_a_schema_applies_it_after_the_calls(rows: Rows) -> None:
    rows.script["rows"]["Dry in Oslo."] = '{"coat": false}'
    done = rows.batch("-o", "-", "--schema", "coat bool")
    answer = json.loads(done.out.splitlines()[0])
    assert (answer["text"], len(answer["calls"]), answer["error"]) == ('{"coat": false}', 1, None)


def test_row_whose_results_do_not_fit_is_refused_alone(rows: Rows) -> None:
    answers = [json.loads(line) for line in rows.batch("-o", "-").out.splitlines()]
    rows.script["context"] = answers[-1]["prompt_tokens"] + 80  # room for a call, but not for its result
    refused = [json.loads(line) for line in rows.batch("-o", "-").out.splitlines()]
    assert refused[0]["error"]["type"] == "context_length_exceeded"
    assert (refused[-1]["text"], refused[-1]["error"]) == ("No call.", None)


def test_evaluation_with_functions_is_compared_with_one_without(rows: Rows) -> None:
    rows.script["rows"] |= {"Oslo?": call("Oslo"), "Dry in Oslo.": "Answer: 4"}
    exam = rows.write("exam.jsonl", [{"question": "Oslo?", "answer": "4"}, {"question": "None?", "answer": "5"}])
    with_functions, without = rows.home / "with.jsonl", rows.home / "without.jsonl"
    done = rows.run("eval", exam, "-o", with_functions)
    assert done.code == 0, done.err
    assert "set of functions weather, " in " ".join(done.out.split())
    answered = [json.loads(line) for line in with_functions.read_text().splitlines()]
    assert [(row["id"], row["final_answer"], len(row["calls"])) for row in answered] == [(1, "4", 1), (2, "No call", 0)]
    assert run_here(rows.script, rows.home, "eval", exam, "-m", rows.model, "-o", without).code == 0
    compared = run_here(rows.script, rows.home, "runs", "compare", without, with_functions)
    assert compared.code == 0, compared.err
    assert "set of functions (none and weather, " in " ".join(compared.out.split())


def test_replies_of_the_library_call_functions(rows: Rows) -> None:
    opener = app_for(rows.script, rows.home).open_file
    with open_model(str(rows.model), installation=installation(opener, rows.home)) as model:
        replies = {reply.index: reply for reply in model.replies(["None?", "Oslo?"], tools=[str(rows.functions)])}
    none, oslo = replies[0], replies[1]
    assert isinstance(none, Reply) and isinstance(oslo, Reply)
    assert (none.text, none.calls) == ("No call.", ())
    assert [str(made) for made in oslo.calls] == ["weather(city='Oslo')"]
    assert (oslo.message.content, oslo.message.rounds[0].content) == ("No coat in Oslo.", "I look.")
