"""`cerebrum batch` as the contract has it: rows of any shape in, a line each out, and the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, saying
from scripted_backend import ScriptedSampler
from scripted_command import RecordingBackend, run_here

from cerebrum_cli.application.inference.batch import BatchOptions, answer_rows
from cerebrum_cli.application.inference.responder import GenerationRequest, TokenizedRequest
from cerebrum_cli.batches.result import StreamedResult
from cerebrum_cli.batches.rows import prompt_row
from cerebrum_cli.core.errors import CerebrumError, EngineError, GrammarError, Interrupted
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.formats.plain import CEREBRUM

OUTPUT_KEYS = [
    "id",
    "prompt",
    "text",
    "final_answer",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "seed",
    "reasoning",
    "votes",
    "error",
]
OPENAI = {"custom_id": "o", "method": "POST", "url": "/v1/chat/completions"}


class Desk:
    """Where batches are run on a scripted model, one after another, in one home; `backends` are the models loaded."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.script: dict[str, Any] = {"rows": {}, "seeds": ["ok"], "backends": []}

    def run(self, *arguments: str | Path, piped: bytes | None = None) -> Finished:
        """Run one batch."""
        return run_here(self.script, self.home, "batch", *arguments, "-m", self.model, piped=piped)

    def write(self, name: str, content: str | bytes | list[Any]) -> Path:
        """Write an input: text, bytes, or objects a line each."""
        if isinstance(content, list):
            content = "".join(json.dumps(each) + "\n" for each in content)
        path = self.home / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def answer(self, content: str | bytes | list[Any], *arguments: str | Path, name: str = "in.jsonl") -> list[Any]:
        """Return the objects a batch streams."""
        return objects(self.run(self.write(name, content), "-o", "-", *arguments).out)

    @property
    def backends(self) -> list[RecordingBackend]:
        """The models that were loaded."""
        backends: list[RecordingBackend] = self.script["backends"]
        return backends


def objects(lines: str) -> list[Any]:
    """Return the objects that stand in lines."""
    return [json.loads(line) for line in lines.splitlines()]


@pytest.fixture
def desk(tmp_path: Path, chatml_model: Path) -> Desk:
    """Return where batches are run."""
    return Desk(tmp_path, chatml_model)


def chatml(question: str, system: str | None = None) -> str:
    """Return the prompt of the tiny model's template."""
    before = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    return f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def said(backend: RecordingBackend) -> list[str]:
    """Return the prompts in the order they were read, each with what was said to it, of a model with one slot."""
    read: list[bytearray] = []
    for [*rows] in backend.steps:
        for row in rows:
            if not read or row.position < len(read[-1]):
                read.append(read[-1][: row.position] if read else bytearray())
            read[-1].append(row.token)
    return [each.decode() for each in read]


# What goes in.

LINES = "first\n\n# a remark\n  second \n"
SHAPES: list[tuple[str, str | bytes | list[Any], list[str], list[tuple[str | int, str]]]] = [
    ("in.txt", LINES, [], [(1, "first"), (4, "  second ")]),
    ("in.txt", b"\xef\xbb\xbfone\r\ntwo", [], [(1, "one"), (2, "two")]),
    ("in.txt", "a {b}\n", ["--template", "Sum up: {text}"], [(1, "Sum up: a {b}")]),
    ("in.jsonl", [{"prompt": "été 日本"}, {"id": 7, "prompt": "b"}], [], [(1, "été 日本"), (7, "b")]),
    ("in.ndjson", [{"custom_id": "c", "messages": [{"role": "user", "content": "hi"}]}], [], [("c", "hi")]),
    ("in.jsonl", [{**OPENAI, "body": {"messages": [{"role": "user", "content": "hi"}]}}], [], [("o", "hi")]),
    ("in.jsonl", [{"q": 3, "prompt": "p"}], ["--template", "{{{q}}}"], [(1, "{3}")]),
    ("in.csv", 'n,q\r\n1,"a, ""b""\nc"\r\n2,d\r\n', ["--column", "q"], [(1, 'a, "b"\nc'), (2, "d")]),
    ("in.csv", "id,prompt\nx,hi\n", [], [("x", "hi")]),
    ("in.tsv", "q\ta\nx\ty\n", ["--template", "{q} is {a}"], [(1, "x is y")]),
    ("in.data", "q\nx\n", ["--shape", "csv", "--column", "q"], [(1, "x")]),
    ("-", LINES, [], [(1, "first"), (4, "  second ")]),
    ("-", [{"prompt": "hi"}], [], [(1, "hi")]),
    ("-", "prompt,more\nhi,x\n", ["--shape", "csv"], [(1, "hi")]),
]


@pytest.mark.parametrize(("name", "content", "arguments", "rows"), SHAPES)
def test_rows_of_every_shape_are_answered_in_their_order(
    desk: Desk,
    name: str,
    content: str | bytes | list[Any],
    arguments: list[str],
    rows: list[tuple[str | int, str]],
) -> None:
    written = desk.write("in" if name == "-" else name, content)
    piped = written.read_bytes() if name == "-" else None
    streamed = desk.run("-" if name == "-" else written, "-o", "-", "--seed", "1", *arguments, piped=piped)
    assert [(each["id"], each["prompt"], each["text"]) for each in objects(streamed.out)] == [
        (id, prompt, "ok") for id, prompt in rows
    ]
    assert streamed.code == 0
    kept = desk.run("-" if name == "-" else written, "-o", desk.home / "out", "--seed", "1", *arguments, piped=piped)
    assert (kept.code, kept.out) == (0, "")
    assert (desk.home / "out").read_text() == streamed.out


def test_a_rows_own_system_prompt_goes_before_the_given_one_and_that_before_the_formats(desk: Desk) -> None:
    listed = [{"role": "system", "content": "LLL"}, {"role": "user", "content": "q"}]
    rows: list[Any] = [{"prompt": "q"}, {"prompt": "q", "system": "RR"}, {"messages": listed}]
    plain, given = desk.answer(rows), desk.answer(rows, "-s", "S")
    assert [each["prompt_tokens"] for each in plain] == [len(chatml("q", system)) for system in (None, "RR", "LLL")]
    assert [each["prompt_tokens"] for each in given] == [len(chatml("q", system)) for system in ("S", "RR", "LLL")]
    assert CEREBRUM.default_system
    own, rows_own, _ = desk.answer(rows, "--format", "cerebrum")
    assert own["prompt_tokens"] - rows_own["prompt_tokens"] == len(CEREBRUM.default_system) - len("RR")


def test_a_conversation_goes_on_and_its_last_question_is_the_prompt(desk: Desk) -> None:
    messages = [
        {"role": role, "content": content} for role, content in [("user", "a"), ("assistant", "b"), ("user", "c")]
    ]
    [row] = desk.answer([{"messages": messages}])
    before = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert (row["prompt"], row["prompt_tokens"]) == ("c", len(before + chatml("c")))


def test_settings_of_a_row_are_its_own(desk: Desk) -> None:
    desk.script["seeds"] = ["zero", "one two three"]
    rows = [
        {"prompt": "a", "seed": 3},
        {"prompt": "b", "max_tokens": 3},
        {"prompt": "c", "stop": [" three", "x"]},
        {"prompt": "d", "seed": 0, "temperature": 1.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1},
    ]
    given = ("--seed", "0", "-n", "8", "--temperature", "0.5", "--parallel", "1")
    answers = desk.answer(rows, *given)
    assert [(each["text"], each["seed"], each["finish_reason"]) for each in answers] == [
        ("one two", 3, "length"),
        ("one", 1, "length"),
        ("zero", 2, "stop"),
        ("zero", 0, "stop"),
    ]
    stopped = desk.answer(rows[2:3], "--seed", "1", "--stop", "two")
    assert (stopped[0]["text"], stopped[0]["finish_reason"]) == ("one two", "stop")  # its own, and not the given one
    first, *_, last = desk.backends[0].params
    assert (first.temperature, first.top_k, first.max_tokens) == (0.5, 40, 8)
    assert (last.temperature, last.top_k, last.top_p, last.min_p, last.repeat_penalty) == (1.5, 5, 0.5, 0.1, 1.1)


# What comes out.


def test_a_row_has_every_key_in_its_order(desk: Desk) -> None:
    desk.script["rows"] = {"p": "<think>hm</think>The answer is 4."}
    done = desk.run(desk.write("in.jsonl", b'{"id": "a", "prompt": "p"}\n{"prompt"\n'), "-o", "-", "--seed", "3")
    answered, failed = objects(done.out)
    assert [list(each) for each in (answered, failed)] == [OUTPUT_KEYS] * 2
    assert list(answered.values()) == [
        "a",
        "p",
        "The answer is 4.",
        "4",
        "stop",
        len(chatml("p")),
        len("<think>hm</think>The answer is 4."),
        3,
        "hm",
        None,
        None,
    ]
    message = "not JSON: Expecting ':' delimiter (character 10)"
    assert list(failed.values()) == [2, *[None] * 9, {"type": "invalid_json", "message": message}]
    assert done.code == 6


def test_rows_are_read_so_that_those_alike_meet_and_written_in_the_order_of_the_input(desk: Desk) -> None:
    source = desk.write("in.txt", "b2\na1\nb1\na2\n")
    desk.run(source, "-o", desk.home / "out", "--parallel", "1")
    assert [each["prompt"] for each in objects((desk.home / "out").read_text())] == ["b2", "a1", "b1", "a2"]
    assert said(desk.backends[0]) == [chatml(each) + "ok" for each in ("a1", "a2", "b1", "b2")]
    desk.run(source, "-o", "-", "--parallel", "1")
    assert said(desk.backends[1]) == [chatml(each) + "ok" for each in ("b2", "a1", "b1", "a2")]  # somebody waits


def test_what_rows_have_in_common_is_evaluated_once(desk: Desk) -> None:
    system = "S" * 500
    desk.answer("".join(f"question {number}\n" for number in range(10)), "-s", system, "--parallel", "4", name="in.txt")
    alone = len(chatml("question 0", system))
    assert desk.backends[0].evaluated < alone + 10 * (len(chatml("question 0")) + len("ok"))


@pytest.mark.parametrize("parallel", ["1", "4", "auto", "256"])
def test_how_many_run_at_once_changes_no_answer(desk: Desk, parallel: str) -> None:
    desk.script["rows"] = {str(number): f"reply {number} x" + "x" * (number * 7 % 23) for number in range(20, 60)}
    source = "".join(f"{number}\n" for number in range(20, 60))
    answers = desk.answer(source, "--parallel", parallel, name="in.txt")
    assert [each["text"] for each in answers] == list(desk.script["rows"].values())
    assert desk.backends[0].slots == {"1": 1, "4": 4}.get(parallel, 40)


@pytest.mark.parametrize("parallel", ["0", "257", "x", "-1", "", "1.5"])
def test_how_many_run_at_once_is_a_number_to_256_or_auto(desk: Desk, parallel: str) -> None:
    done = desk.run(desk.write("in.txt", "a"), "-o", "-", "--parallel", parallel)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: --parallel is {parallel!r}\n  try: it must be a number from 1 to 256, or auto\n"


def test_bad_rows_are_error_rows_and_the_others_are_answered(desk: Desk) -> None:
    desk.script["context"] = 300
    source = desk.write(
        "in.jsonl",
        b"nonsense\n"
        b'{"prompt": " "}\n'
        b'{"id": "long", "prompt": "' + b"x" * 300 + b'"}\n'
        b'{"prompt": "hi", "temperature": "hot"}\n'
        b'{"prompt": "hi", "grammar": "?"}\n'
        b"\xff\n",
    )
    done = desk.run(source, "-o", desk.home / "out")
    answers = objects((desk.home / "out").read_text())
    types = [each["error"] and each["error"]["type"] for each in answers]
    expected = ["invalid_json", "no_prompt", "context_length_exceeded", "invalid_setting", None, "invalid_utf8"]
    assert (done.code, types) == (6, expected)
    size = len(chatml("x" * 300))
    assert answers[2]["error"]["message"].startswith(f"the prompt has {size} tokens and the context holds 300: shorten")
    assert (answers[2]["id"], answers[2]["prompt"], answers[2]["text"]) == ("long", "x" * 300, None)
    assert done.err.startswith("6 of 6 done, 5 failed, 2 tokens in ")


def test_rows_draw_by_seeds_of_their_own(desk: Desk) -> None:
    desk.script["seeds"] = ["zero", "one", "two", "three", "four"]
    rows = [{"prompt": "same"}] * 5
    first, second = (desk.answer(rows, "--seed", "5", "--parallel", parallel) for parallel in ("2", "5"))
    assert first == second
    assert [(each["seed"], each["text"]) for each in first] == list(
        zip(range(5, 10), desk.script["seeds"], strict=True)
    )
    fresh = [each["seed"] for each in desk.answer(rows)]
    assert len(set(fresh)) == 5
    wrapped = desk.answer(rows[:2], "--seed", "4294967294")
    assert [each["seed"] for each in wrapped] == [4294967294, 0]


def test_rows_alike_and_ids_alike_are_rows_of_their_own(desk: Desk) -> None:
    desk.script["seeds"] = ["zero", "one"]
    rows = [{"id": 1, "prompt": "p", "seed": seed} for seed in (0, 1, 0)]
    desk.run(desk.write("in.jsonl", rows), "-o", desk.home / "out")
    assert [each["text"] for each in objects((desk.home / "out").read_text())] == ["zero", "one", "zero"]


def test_a_quiet_batch_says_nothing(desk: Desk) -> None:
    source = desk.write("in.txt", "a\nb\n")
    for _ in range(2):
        done = desk.run(source, "-o", desk.home / "out", "-q")
        assert (done.code, done.out, done.err) == (0, "", "")


def test_a_row_that_cannot_go_on_is_an_error_row_and_the_others_are_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ScriptedSampler.sample

    def refuses(sampler: ScriptedSampler, row: int) -> int:
        if b"stuck" in bytes(token for token in sampler.expected if token < 256):
            raise GrammarError("nothing goes on", "check the grammar")
        return sample(sampler, row)

    monkeypatch.setattr(ScriptedSampler, "sample", refuses)
    for votes in ((), ("--votes", "3")):
        output = desk.home / f"out{len(votes)}"
        done = desk.run(desk.write("in.txt", "a\nstuck\nb\n"), "-o", output, *votes)
        assert done.code == 6
        first, second, third = objects(output.read_text())
        assert (first["text"], third["text"]) == ("ok", "ok")
        assert second["error"] == {"type": "invalid_request", "message": "nothing goes on: check the grammar"}


# The same command again.


def test_a_complete_output_is_not_evaluated_again_and_repeats_its_exit_code(desk: Desk) -> None:
    for name, content, code in (("good.txt", "a\nb\n", 0), ("bad.jsonl", '{"prompt": "a"}\n{\n', 6)):
        output = desk.home / f"{name}.out"
        first = desk.run(desk.write(name, content), "-o", output)
        written, loaded = output.read_bytes(), len(desk.backends)
        again = desk.run(desk.home / name, "-o", output)
        assert (first.code, again.code) == (code, code)
        assert (output.read_bytes(), len(desk.backends)) == (written, loaded)
        assert again.err == ("2 of 2 done, 1 failed\n" if code else "2 of 2 done\n")


def test_a_complete_output_is_not_read_as_one_of_another_batch(desk: Desk) -> None:
    source, output = desk.write("in.txt", "a\nb\n"), desk.home / "out"
    desk.run(source, "-o", output, "-n", "9")
    written = output.read_bytes()
    grammar = saying("ok", desk.home)
    for other, told in (
        (["-n", "8"], "another max tokens (9, now 8)"),
        (["-n", "9", "--temperature", "0.5"], "another temperature (0.0, now 0.5)"),
        (["-n", "9", "-s", "S"], "another system (none, now S)"),
        (["-n", "9", "--format", "cerebrum"], "another format (embedded, now cerebrum)"),
        (["-n", "9", "--template", "{text}?"], "another template (none, now {text}?)"),
        (["-n", "9", "--grammar", str(grammar)], "another grammar (none, now "),
        (["-n", "9", "--ignore-eos"], "another ignore eos (false, now true)"),
        (["-n", "9", "--votes", "3", "--temperature", "0.5"], "another votes (none, now 3..3)"),
    ):
        done = desk.run(source, "-o", output, *other)
        assert (done.code, output.read_bytes()) == (1, written)
        assert done.err.startswith(f"error: {output} was made with ") and told in done.err
        assert done.err.endswith("try: --restart replaces it; or choose another -o\n")
    desk.write("in.txt", "a\nc\n")
    assert "another input (" in desk.run(source, "-o", output, "-n", "9").err
    assert len(desk.backends) == 1
    assert desk.run(source, "-o", output, "-n", "9", "--restart").code == 0
    assert [each["prompt"] for each in objects(output.read_text())] == ["a", "c"]


def test_another_model_does_not_go_on_with_the_rows_of_one(desk: Desk) -> None:
    source, output = desk.write("in.txt", "a\nb\n"), desk.home / "out"
    desk.run(source, "-o", output)
    other = desk.home / "other.gguf"
    other.write_bytes(desk.model.read_bytes())
    done = run_here(desk.script, desk.home, "batch", source, "-o", output, "-m", other)
    assert (done.code, len(desk.backends)) == (1, 1)
    assert "was made with another model (chatml, now other)" in done.err


def test_a_batch_that_failed_goes_on_with_the_rows_that_are_missing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = desk.write("in.txt", "".join(f"{number}\n" for number in range(10, 30))), desk.home / "out"
    desk.script["seeds"] = ["a longer reply"]
    arguments = (source, "-o", output, "--parallel", "4", "--seed", "1")
    desk.run(source, "-o", desk.home / "whole", "--parallel", "4", "--seed", "1")
    limit = 60

    def decode(backend: RecordingBackend, rows: Any, really: Callable[..., bool] = RecordingBackend.decode) -> bool:
        if len(backend.steps) == limit:
            raise EngineError("the machine is on fire")
        return really(backend, rows)

    with monkeypatch.context() as patched:
        patched.setattr(RecordingBackend, "decode", decode)
        failed = desk.run(*arguments)
    assert (failed.code, failed.err.splitlines()[-1]) == (1, "error: the machine is on fire")
    partial = objects((desk.home / "out.partial").read_text())
    assert 0 < len(partial) < 20
    assert not output.exists()
    refused = desk.run(*arguments, "-n", "3")
    assert (refused.code, objects((desk.home / "out.partial").read_text())) == (1, partial)
    assert "try: the same command as before goes on; --restart begins anew" in refused.err
    assert desk.run(*arguments).code == 0
    assert output.read_bytes() == (desk.home / "whole").read_bytes()
    assert desk.backends[-1].slots == 4
    assert len(desk.backends[-1].params) == 20 - len(partial)  # no row is asked twice
    assert sorted(path.name for path in desk.home.glob("out*")) == ["out", "out.meta.json"]


def test_an_output_may_be_a_link_or_relative_or_on_another_disk(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    source = desk.write("in.txt", "a\n")
    (folder / "link").symlink_to("target")
    assert desk.run(Path("../in.txt"), "-o", "link").code == 0
    assert desk.run(source, "-o", folder / "link").code == 0  # the same one
    assert (folder / "link").is_symlink()
    assert (folder / "target").read_text() == (folder / "link").read_text()
    assert len(desk.backends) == 1


def test_where_no_result_can_be_nothing_is_begun(desk: Desk) -> None:
    source = desk.write("in.txt", "a\n")
    (desk.home / "old").write_text("mine\n")
    for output, code, told in (
        (desk.home / "no" / "out", 2, "is no directory"),
        (desk.home, 2, "is a directory"),
        (source, 2, "the input"),
        (Path("/dev/null"), 2, "is no file that could be replaced"),
        (desk.home / "old", 1, "is there already"),
    ):
        done = desk.run(source, "-o", output)
        assert (done.code, done.out) == (code, "")
        assert told in done.err.splitlines()[0]
        assert done.err.splitlines()[1].startswith("  try: ")
    assert (desk.home / "old").read_text() == "mine\n"
    assert not desk.backends


def test_what_cannot_be_read_as_asked_is_exit_2(desk: Desk) -> None:
    source, table = desk.write("in.txt", "a\n"), desk.write("in.csv", "q\na\n")
    for arguments, told in (
        (["nowhere.txt"], "error: nowhere.txt: No such file or directory"),
        (["-"], "error: INPUT is `-`, and nothing is piped in"),
        ([table], "error: the input has no column `prompt`"),
        ([source, "--column", "q"], "error: --column is for tables, and the input is txt"),
        ([source, "--template", "{nope}"], "error: a line of text has no field `nope`"),
        ([source, "--shape", "xml"], "error: the shape 'xml' is not known"),
        ([source, "--votes", "none"], "error: --votes is 'none'"),
        ([desk.write("empty.txt", "# nothing\n")], "error: the input holds no prompts"),
    ):
        done = desk.run(*arguments, "-o", desk.home / "out")
        assert (done.code, done.out) == (2, ""), arguments
        assert done.err.startswith(told), done.err
    assert not list(desk.home.glob("out*"))


# An interruption concerns all rows.


def test_a_signal_while_a_row_is_prepared_is_no_error_of_that_row() -> None:
    class Interrupting:
        def load(self) -> list[Any]:
            return []

        def prepared(self, asked: GenerationRequest) -> TokenizedRequest:
            raise Interrupted(2)

    responder: Any = Interrupting()
    rows = [prompt_row(1, 1, "a")]
    result = StreamedResult(rows, lambda line: None)
    with pytest.raises(CerebrumError) as raised:
        list(answer_rows(responder, rows, BatchOptions(Settings()), result, True))
    assert isinstance(raised.value, Interrupted)
    assert not result.finished


# The real thing.


@pytest.fixture
def cerebrum(tmp_path: Path, mistral_model: Path) -> CommandLine:
    """Return the command line of a user with a tiny model that has Mistral's vocabulary."""
    user = CommandLine(tmp_path)
    (user.config / "config.toml").write_text(f'model = {json.dumps(str(mistral_model))}\nformat = "cerebrum"\n')
    return user


ROWS = [
    {"prompt": "What is 1 + 1?"},
    {"prompt": "What is 1 + 2?", "max_tokens": 5},
    {"prompt": "hi", "temperature": 0.8, "seed": 1},
    {"prompt": "hi", "temperature": 0.8, "seed": 1},
    {"prompt": "hi", "temperature": 0.8, "seed": 2},
    {"prompt": "été 日本 " * 20},
    {"prompt": "too long " * 90},
]


def test_a_real_model_says_the_same_however_many_run_at_once(cerebrum: CommandLine) -> None:
    (cerebrum.home / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = ("batch", "in.jsonl", "--seed", "7", "-n", "20", "--ctx", "180")
    for parallel in ("1", "4", "auto"):
        done = cerebrum.run(*asked, "--parallel", parallel, "-o", f"{parallel}.out")
        assert done.code == 6, done.err
    texts = [(cerebrum.home / f"{parallel}.out").read_bytes() for parallel in ("1", "4", "auto")]
    assert texts[0] == texts[1] == texts[2]
    answers = objects(texts[0].decode())
    assert answers[1]["completion_tokens"] == 5
    assert answers[2] == {**answers[3], "id": 3}
    assert answers[2]["text"] != answers[4]["text"]
    assert answers[6]["error"]["type"] == "context_length_exceeded"
    assert "raise --ctx (this model was trained to 2048)" in answers[6]["error"]["message"]


def test_the_same_seeds_and_the_same_parallelism_are_the_same_answers_twice(cerebrum: CommandLine) -> None:
    (cerebrum.home / "in.txt").write_text("".join(f"question {number}\n" for number in range(12)))
    asked = ("batch", "in.txt", "--seed", "7", "-n", "24", "--temperature", "0.8", "--parallel", "4")
    for name in ("a.out", "b.out"):
        assert cerebrum.run(*asked, "-o", name).code == 0
    first = (cerebrum.home / "a.out").read_bytes()
    assert first == (cerebrum.home / "b.out").read_bytes()
    assert len({each["text"] for each in objects(first.decode())}) == 12


def test_ignoring_the_end_goes_on_to_the_most_tokens(cerebrum: CommandLine) -> None:
    asked = ("batch", "-", "-o", "-", "-n", "16", "--grammar", saying("ok", cerebrum.home))
    [goes_on] = objects(cerebrum.run(*asked, "--ignore-eos", stdin="hi\n").out)
    assert goes_on["text"].startswith("ok")
    assert (goes_on["completion_tokens"], goes_on["finish_reason"]) == (16, "length")


def test_the_help_fits_a_terminal_and_names_every_option(cerebrum: CommandLine) -> None:
    lines = cerebrum.run("batch", "--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for option in ("--column", "--template", "--shape", "--votes", "--no-early-stop", "--parallel", "--restart"):
        assert f"  {option} " in text
    assert "  -o, --output OUTPUT " in text
    assert "--ignore-eos" in text


def test_a_closed_pipe_ends_quietly(cerebrum: CommandLine) -> None:
    (cerebrum.home / "in.txt").write_text("".join(f"question {number}\n" for number in range(300)))
    process = cerebrum.start("batch", "in.txt", "-o", "-", "-n", "50", "--parallel", "2")
    assert process.stdout and process.stderr
    assert json.loads(process.stdout.readline())["id"] == 1
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


def test_answers_are_streamed_while_later_rows_are_still_answered(cerebrum: CommandLine) -> None:
    (cerebrum.home / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 1}\n{"prompt": "b"}\n')
    process = cerebrum.start("batch", "in.jsonl", "-o", "-", "--ignore-eos")
    assert process.stdout
    assert json.loads(process.stdout.readline())["id"] == 1
    assert process.poll() is None
    process.kill()
    process.communicate()
