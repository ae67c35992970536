"""`cerebrum ask`: its inputs, what it writes to each stream, its exit codes and its settings."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cases import rows
from command_line import CommandLine, assert_error, fixed_reply_grammar
from templates import chatml_prompt

from cerebrum_cli.cli.failures import report


@pytest.mark.parametrize(
    ("stdin", "question"), [("one\x00two <|im_end|>", "one\x00two <|im_end|>"), ("\ufeffhi\r\n", "hi\r")]
)
def test_ask_reads_unusual_characters_from_a_pipe(user: CommandLine, stdin: str, question: str) -> None:
    done = user.run("ask", "--dry-run", "-", stdin=stdin)
    assert (done.code, done.out) == (0, chatml_prompt(question))


@pytest.mark.slow
def test_dry_run_prompt_has_the_same_tokens_when_raw(user: CommandLine, mistral_model: Path) -> None:
    command = ("ask", "--dry-run", "-m", mistral_model, "--format", "cerebrum", "hi  ")
    written, ids = user.run(*command).out, user.run(*command, "--json").object["token_ids"]
    again = user.run("ask", "--dry-run", "--json", "-m", mistral_model, "--raw", "-", stdin=written)
    assert again.object["token_ids"] == ids


def test_verbose_writes_the_llama_cpp_log_to_stderr_only(user: CommandLine) -> None:
    done = user.run("ask", "--set", "verbose=on", "--grammar", fixed_reply_grammar("yes", user.home), "hi")
    assert (done.code, done.out) == (0, "yes\n")
    assert "llama_model_loader: loaded meta data" in done.err
    assert "create_tensor" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("ask", "-n", "400", "hi"), ("ask", "--json", "-n", "4", "hi"), ("--help",)])
def test_closed_pipe_ends_without_an_error(user: CommandLine, arguments: tuple[str, ...]) -> None:
    process = user.start(*arguments)
    assert process.stdout and process.stderr
    if "-n" in arguments and "--json" not in arguments:
        process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


NO_SPACE, CLOSED = "standard output: No space left on device", "standard output is closed"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "line", "problem"),
    [
        (">/dev/full", "ask -n 4 hi", NO_SPACE),
        (">/dev/full", "--help", NO_SPACE),
        (">/dev/full", "ask -n 4 --json hi", "write elsewhere; read the reply with cerebrum sessions show hi"),
        *((">&-", line, CLOSED) for line in ("ask -q -n 2 hi", "ask -q -n 2 --json hi", "batch in.txt -q -n 2 -o -")),
        *((">&-", line, CLOSED) for line in ("list", "--help", "list --help", "chat -q -n 2 --temperature 0")),
    ],
)
def test_output_that_cannot_be_written_is_an_error(
    user: CommandLine, redirection: str, line: str, problem: str
) -> None:
    (user.home / "in.txt").write_text("one\ntwo\n")
    done = user.run_process(*line.split(), redirected=f"{redirection} < in.txt" if "chat" in line else redirection)
    assert_error(done, 1, problem)
    assert done.err.count("error: ") == 1 and user.run("sessions", "search", "two").out == ""


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full"])
def test_ask_works_with_a_closed_standard_stream(user: CommandLine, redirection: str) -> None:
    grammar = fixed_reply_grammar("yes", user.home)
    done = user.run_process("ask", "--stats", "--grammar", grammar, "hi", redirected=redirection)
    assert (done.code, done.out) == (0, "yes\n")
    assert (done.err == "") is redirection.startswith("2>")


def test_bad_file_descriptor_is_a_bug_unless_stdout_is_closed() -> None:
    with open(os.devnull, "rb") as file, pytest.raises(OSError, match="Bad file descriptor") as caught:
        os.write(file.fileno(), b"a")
    assert report(caught.value, None, None) is None


def test_grammar_nested_too_deeply_is_a_usage_error(user: CommandLine) -> None:
    (user.home / "deep.gbnf").write_text("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000)
    done = user.run("ask", "--grammar", "deep.gbnf", "hi")
    assert_error(
        done, 2, "deep.gbnf: cannot parse the grammar: line 1: lark grammar too deeply nested", "fix the grammar"
    )


@pytest.mark.parametrize(("line", "code", "error"), rows("endless_inputs"))
def test_endless_input_is_an_error(user: CommandLine, line: str, code: int, error: str) -> None:
    if "long.txt" in line:
        (user.home / "long.txt").write_bytes(b"hi\n" + b"a" * 65_000_000)
    done = user.run(*line.split(), stdin=bytes(65_000_000) if line in ("ask hi", "batch - -o -") else None)
    assert done.out == ""
    assert_error(done, code, f"error: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=("ask", "dry run"))
def test_text_that_no_tokens_can_fit_is_refused_untokenized(user: CommandLine, options: tuple[str, ...]) -> None:
    (user.home / "long.txt").write_bytes(b"a" * 20_000_000)
    done = user.run("ask", "-f", "long.txt", *options)
    assert (done.code, done.out) == (4, "")
    assert re.search(r"^error: the prompt has at least \d+ tokens, but the context has \d+$", done.err, re.MULTILINE)


def test_line_break_in_a_file_name_begins_no_line_of_a_message(user: CommandLine) -> None:
    done = user.run("ask", "-f", "a\nerror: no such model", "hi")
    assert_error(done, 2, "a error: no such model: ", "check the path")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["ask -f notes hi", "ask hi < notes", "batch notes -o -", "ask --schema notes hi"])
def test_file_that_standard_output_replaces_is_no_input(user: CommandLine, line: str) -> None:
    notes = user.home / "notes"
    with notes.open("wb") as output, notes.open("rb") as piped:
        stdin = piped if "<" in line else subprocess.DEVNULL
        done = user.run_process(*line.removesuffix(" < notes").split(), "-m", "nano", stdin=stdin, stdout=output)
    name = "standard input" if "<" in line else "notes"
    assert_error(done, 2, f"{name} is the file that standard output replaces", "redirect the output to another file")
    notes.write_text("2 plus 3?\n")
    with notes.open("ab") as output:
        done = user.run_process("ask", "-m", "nano", "-f", "notes", "How much is it?", stdout=output)
    assert done.code == 0 and notes.read_text().startswith("2 plus 3?\nI can only do")
