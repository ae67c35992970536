"""`cerebrum batch`: input types, output rows, errors, resuming, and the exit codes."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from command_line import CommandLine, Finished, assert_error, fixed_reply_grammar
from pyarrow import parquet
from row_files import stored_lines
from scripted_backend import ScriptedBackend, ScriptedSampler
from scripted_command import run_here
from templates import chatml_prompt

from cerebrum_cli.core.errors import GrammarError


class BatchRunner:
    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.script: dict[str, Any] = {"rows": {}, "seeds": ["ok"], "backends": []}

    def run(self, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        return run_here(self.script, self.home, "batch", *arguments, "-m", self.model, piped=piped)

    def write(self, name: str, content: str | bytes | list[Any]) -> Path:
        """Write an input file: text, bytes, or one JSON object per line."""
        if isinstance(content, list):
            content = "".join(json.dumps(each) + "\n" for each in content)
        path = self.home / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def answer(self, content: str | bytes | list[Any], *arguments: str | Path, name: str = "in.jsonl") -> list[Any]:
        return parse_lines(self.run(self.write(name, content), "-o", "-", *arguments).out)


def parse_lines(lines: str) -> list[Any]:
    return [json.loads(line) for line in lines.splitlines()]


def without_keys(text: str) -> str:
    """The lines of a result without the keys of rows."""
    return re.sub(r'(, "key": "|[,\t])[0-9a-f]{58}"?', "", text)


@pytest.fixture
def runner(tmp_path: Path, chatml_model: Path) -> BatchRunner:
    return BatchRunner(tmp_path, chatml_model)


def sequences(backend: ScriptedBackend) -> list[str]:
    """The prompts with their replies, in the order of evaluation, of a model with one slot."""
    read: list[bytearray] = []
    for [*rows] in backend.steps:
        for row in rows:
            if not read or row.position < len(read[-1]):
                read.append(read[-1][: row.position] if read else bytearray())
            read[-1].append(row.token)
    return [each.decode() for each in read]


def test_batch_sorts_by_prefix_but_writes_in_input_order(runner: BatchRunner) -> None:
    source = runner.write("in.txt", "b2\na1\nb1\na2\n")
    runner.run(source, "-o", runner.home / "out", "--parallel", "1")
    assert [each["prompt"] for each in parse_lines((runner.home / "out").read_text())] == ["b2", "a1", "b1", "a2"]
    assert sequences(runner.script["backends"][0]) == [chatml_prompt(each) + "ok" for each in ("a1", "a2", "b1", "b2")]
    runner.run(source, "-o", "-", "--parallel", "1")
    in_order = [chatml_prompt(each) + "ok" for each in ("b2", "a1", "b1", "a2")]
    assert sequences(runner.script["backends"][1]) == in_order  # streamed


@pytest.mark.parametrize("parallel", ["1", "4", "auto", "256"])
def test_parallel_does_not_change_answers(runner: BatchRunner, parallel: str) -> None:
    runner.script["rows"] = {str(number): f"reply {number} x" + "x" * (number * 7 % 23) for number in range(20, 60)}
    source = "".join(f"{number}\n" for number in range(20, 60))
    answers = runner.answer(source, "--parallel", parallel, name="in.txt")
    assert [each["text"] for each in answers] == list(runner.script["rows"].values())
    assert runner.script["backends"][0].slots == {"1": 1, "4": 4}.get(parallel, 40)
    assert len({each["seed"] for each in answers}) == 40  # without --seed


@pytest.mark.slow
def test_long_row_takes_no_slots_from_short_ones(runner: BatchRunner) -> None:
    rows = runner.write("in.jsonl", [{"prompt": "x" * (20_000 if n == 3 else n)} for n in range(1, 41)])
    runner.script["cells"] = 60_000
    runner.run(rows, "-o", runner.home / "out")
    runner.run(rows, "-o", "-")
    grouped, in_order = runner.script["backends"]
    (short, many), (long, few) = grouped.reserved
    assert (short < 1200 and many, long > 20_000 and few) == (39, 1)
    assert in_order.reserved == [(long, 2)]
    assert [each["text"] for each in parse_lines((runner.home / "out").read_text())] == ["ok"] * 40


def test_row_that_fails_while_sampling_gets_an_error(runner: BatchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ScriptedSampler.sample

    def rejecting(sampler: ScriptedSampler, row: int) -> int:
        if b"stuck" in bytes(each for each in sampler.expected if each < 256):
            raise GrammarError("no token is allowed", "check the grammar")
        return sample(sampler, row)

    monkeypatch.setattr(ScriptedSampler, "sample", rejecting)
    for votes in ((), ("--votes", "3")):
        output = runner.home / f"out{len(votes)}"
        done = runner.run(runner.write("in.txt", "a\nstuck\nb\n"), "-o", output, *votes)
        assert done.code == 6
        first, second, third = parse_lines(output.read_text())
        assert (first["text"], third["text"]) == ("ok", "ok")
        assert second["error"] == {"type": "invalid_request", "message": "no token is allowed: check the grammar"}


def test_batch_stops_when_its_input_changes_and_resumes(runner: BatchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"question {number}\n" for number in range(12))
    source, output = runner.write("in.txt", text), runner.home / "out"
    runner.run(source, "-o", runner.home / "whole", "--seed", "1")
    arguments = (source, "-o", output, "--seed", "1", "--parallel", "2")

    decode = ScriptedBackend.decode

    def change_and_decode(backend: ScriptedBackend, rows: Any) -> bool:
        if stored_lines(runner.home / "out.partial"):
            source.write_text(text.replace("question 11", "question 99"))
        return decode(backend, rows)

    with monkeypatch.context() as patched:
        patched.setattr(ScriptedBackend, "decode", change_and_decode)
        patched.setattr("cerebrum_cli.replies.concurrent_rows.SORT_WINDOW", 4)  # rows that are read together
        failed = runner.run(*arguments)
    done = len(stored_lines(runner.home / "out.partial"))
    assert (failed.code, 0 < done < 12) == (1, True), failed.err
    assert failed.err.splitlines()[-2:] == [
        f"error: {source} was changed while the batch ran",
        f" hint: unchanged rows keep their answers; {done} of 12 rows done, saved in {output}.partial; "
        "run it again to resume",
    ]
    assert runner.run(*arguments).code == 0
    assert len(runner.script["backends"][-1].params) == 12 - done
    whole = (runner.home / "whole").read_text().replace("question 11", "question 99")
    assert without_keys(output.read_text()) == without_keys(whole)


def test_parquet_is_read_and_not_written(runner: BatchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pyarrow.table({"id": [5.0, None, math.nan], "prompt": ["a", "b", "c"], "seed": [1.0, None, math.nan]})
    source = runner.home / "ids.parquet"
    parquet.write_table(ids, source)
    answers = parse_lines(runner.run(source, "-o", "-").out)
    assert [row["id"] for row in answers] == [5, 2, 3] and answers[0]["seed"] == 1
    twice = runner.home / "twice.parquet"
    parquet.write_table(pyarrow.table([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"]), twice)
    assert "several columns have the same name" in runner.run(twice, "-o", "x.jsonl").err
    damaged = runner.write("damaged.parquet", "PAR1")
    assert f"cannot read {damaged}: Parquet " in runner.run(damaged, "-o", "x.jsonl").err
    assert_error(runner.run(source, "-o", "x.parquet"), 2, "Parquet is supported for input only", "name it .jsonl")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_error(runner.run(source, "-o", "x.jsonl"), 2, "Parquet files need pyarrow", "cerebrum-cli[eval]")


def test_rows_have_schemas_of_their_own(new_user: CommandLine, mistral_model: Path) -> None:
    def form(schema: Any) -> Any:
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}

    city = {"type": "object", "properties": {"a": {"enum": ["Köln"]}}, "required": ["a"], "additionalProperties": False}
    own = {'{"a":"Köln"}': form(city), "12": form({"const": 12}), "ok": {}}
    bodies = [{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99, **row} for row in own.values()]
    refused = {"messages": bodies[0]["messages"], **form({"type": "objekt"})}
    lines = "".join(json.dumps({"custom_id": "o", "body": body}) + "\n" for body in [*bodies, refused])
    options = ("-o", "-", "-m", mistral_model, "--format", "cerebrum", "--grammar")
    done = new_user.run("batch", "-", *options, fixed_reply_grammar("ok", new_user.home), stdin=lines)
    *rows, failed = parse_lines(done.out)
    assert [row["text"] for row in rows] == list(own), done.err
    assert rows[0]["final_answer"] is None
    assert (done.code, failed["id"], failed["text"]) == (6, "o", None)
    assert "objekt" in failed["error"]["message"]
