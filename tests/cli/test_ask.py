"""`cerebrum ask`: its inputs, what it writes to each stream, its exit codes and its settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from platform import machine
from typing import Any

import pytest
import typer
from command_line import COMMAND, CommandLine, assert_error, endless_reply_grammar, fixed_reply_grammar
from templates import chatml_prompt
from tiny_models import Shape, write_chatml, write_quantized

from cerebrum_cli import __version__
from cerebrum_cli.core.declaration import variable
from cerebrum_cli.formats.plain import CEREBRUM
from cerebrum_cli.main import assembled

ANSWER_KEYS = (
    "model file format text final_answer extracted finish_reason thought_closed_at prompt_tokens cached_tokens"
    " completion_tokens seed reasoning votes timings"
)
TIMING_KEYS = "load_s prefill_s ttft_s decode_s prompt_tokens_per_second tokens_per_second draft_n draft_n_accepted"


# Inputs.


@pytest.mark.parametrize(
    ("stdin", "question"), [("one\x00two <|im_end|>", "one\x00two <|im_end|>"), ("\ufeffhi\r\n", "hi\r")]
)
def test_ask_reads_unusual_characters_from_a_pipe(user: CommandLine, stdin: str, question: str) -> None:
    done = user.run("ask", "--dry-run", "-", stdin=stdin)
    assert (done.code, done.out) == (0, chatml_prompt(question))


@pytest.mark.slow
def test_ask_counts_the_tokens_of_a_prompt_over_half_the_context(user: CommandLine) -> None:
    (user.home / "long.txt").write_text("word " * 150)
    command = ("ask", "-f", "long.txt", "--ctx", "1024", "--grammar", fixed_reply_grammar("yes", user.home), "hi")
    tokens = user.run(*command, "--json").object["prompt_tokens"]
    assert 512 < tokens < 1024
    done = user.run(*command)
    assert (done.code, done.out) == (0, "yes\n")
    assert done.err == (
        f"note: the prompt has {tokens} tokens, more than half of the context of 1024\n"
        f"      there is room for a reply of {1024 - tokens} tokens\n"
    )
    assert (user.run(*command, "-q").err, user.run(*command, "--ctx", "2048").err) == ("", "")
    voted = user.run(*command, "--votes", "2")
    assert voted.err.startswith(f"note: the prompt has {tokens} tokens, more than half")


def test_ask_uses_the_given_or_the_formats_system_prompt(user: CommandLine, mistral_model: Path) -> None:
    assert user.run("ask", "--dry-run", "-s", "be brief", "hi").out == chatml_prompt("hi", "be brief")
    done = user.run("ask", "--dry-run", "-m", mistral_model, "--format", "cerebrum", "hi")
    assert done.out == f"<s>{CEREBRUM.default_system}\nUser: hi\nAI:"


@pytest.mark.slow
def test_template_arg_values_are_json_or_text(new_user: CommandLine) -> None:
    template = "{{ mood }}/{{ fast is true }}: {{ messages[0]['content'] }}"
    model = write_chatml(new_user.home / "moody.gguf", chat_template=template)
    given = ("--set", "template_arg=mood=grim and old", "--set", "template_arg=fast=true")
    assert new_user.run("ask", "--dry-run", "-m", model, *given, "hi").out == "grim and old/True: hi"
    variable = {"CEREBRUM_TEMPLATE_ARG": "mood=grim and old"}
    assert new_user.run("ask", "--dry-run", "-m", model, "hi", env=variable).out == "grim and old/False: hi"


# Dry run.


def test_dry_run_prints_the_prompt_and_its_token_count(user: CommandLine) -> None:
    done = user.run("ask", "--dry-run", "hi")
    described = user.run("ask", "--dry-run", "--json", "hi")
    assert list(described.object) == ["prompt", "prompt_tokens", "token_ids", "format", "model"]
    assert described.object["prompt"] == done.out
    assert described.object["prompt_tokens"] == len(described.object["token_ids"])
    assert (described.object["format"], described.object["model"]) == ("embedded", "small")
    assert (done.err, described.err) == (f"{described.object['prompt_tokens']} tokens\n", "")
    assert user.run("ask", "--dry-run", "-q", "hi").err == ""
    without_effect = ("--no-log", "--offline", "--yes", "--no-markdown")
    assert user.run("ask", "--dry-run", *without_effect, "hi").out == done.out == chatml_prompt("hi")
    assert user.run("ask", "--dry-run", "--raw", "  The capital\n").out == "  The capital\n"


@pytest.mark.slow
def test_dry_run_prompt_has_the_same_tokens_when_raw(user: CommandLine, mistral_model: Path) -> None:
    command = ("ask", "--dry-run", "-m", mistral_model, "--format", "cerebrum", "hi  ")
    written, ids = user.run(*command).out, user.run(*command, "--json").object["token_ids"]
    again = user.run("ask", "--dry-run", "--json", "-m", mistral_model, "--raw", "-", stdin=written)
    assert again.object["token_ids"] == ids


# Output.


def test_json_has_the_documented_keys_and_the_same_text(user: CommandLine) -> None:
    command = ("ask", "-n", "12", "--temperature", "1", "--seed", "7", "hi")
    answer = user.run(*command, "--json").object
    assert (" ".join(answer), " ".join(answer["timings"])) == (ANSWER_KEYS, TIMING_KEYS)
    assert (answer["model"], answer["format"], answer["seed"]) == ("small", "embedded", 7)
    assert answer["finish_reason"] in ("stop", "length")
    assert (answer["completion_tokens"] == 12) is (answer["finish_reason"] == "length")
    assert (answer["cached_tokens"], answer["reasoning"], answer["votes"]) == (0, None, None)
    plain = user.run(*command)
    notice = "note: answer truncated at 12 tokens\n      raise --max-tokens; cerebrum ask -c continues it\n"
    assert (plain.code, plain.err) == (0, notice if answer["finish_reason"] == "length" else "")
    assert plain.out == answer["text"] + "\n" * (not answer["text"].endswith("\n"))


@pytest.mark.slow
def test_ask_writes_the_text_without_reasoning_and_one_newline_to_a_pipe(user: CommandLine) -> None:
    text = "# Title\n\n- **bold** " + "words " * 40 + "end"
    command = ("ask", "--grammar", fixed_reply_grammar(f"<think>well, hm</think>\n\n{text}", user.home), "hi")
    done = user.run(*command)
    assert (done.code, done.out, done.err) == (0, text + "\n", "")
    answer = user.run(*command, "--json").object
    assert (answer["text"], answer["reasoning"]) == (text, "well, hm")


def test_extract_takes_the_block_of_a_truncated_answer(user: CommandLine) -> None:
    grammar = fixed_reply_grammar("```py\n" + "abcdefgh" * 20, user.home)
    done = user.run("ask", "-x", "-n", "20", "--grammar", grammar, "hi")
    assert (done.code, done.out[:3]) == (5, "abc")
    assert done.err.startswith("error: answer truncated at 20 tokens, so it does not match the grammar\n")
    (user.home / "open.gbnf").write_text('root ::= "```py\\n" [a-z]*')
    raw = user.run("ask", "-x", "-n", "12", "--json", "--grammar", "open.gbnf", "hi")
    assert raw.object["finish_reason"] == "length"
    assert raw.object["extracted"] == raw.object["text"].removeprefix("```py\n")


@pytest.mark.slow
def test_stats_name_how_weights_are_laid_out(user: CommandLine) -> None:
    x86 = machine().lower() in ("x86_64", "amd64")
    quantized = write_quantized(user.home / "tiny-Q4_K_M.gguf", shape=Shape(width=256, ffn=512))
    whole = write_chatml(user.home / "tiny-F32.gguf")
    for model, is_repacked in ((quantized, not x86), (whole, True)):
        [line] = user.run("ask", "-m", model, "--stats", "-n", "2", "-q", "--seed", "11", "hi").err.splitlines()
        assert "| seed 11 |" in line
        assert ("| weights repacked where possible |" in line) == is_repacked
        assert ("| weights as in the file (not repacked) |" in line) == (not is_repacked)


def test_seed_repeats_an_answer_and_a_random_one_is_reported(user: CommandLine) -> None:
    command = ("ask", "--json", "-n", "24", "--temperature", "1", "hi")
    first, second = user.run(*command).object, user.run(*command).object
    assert first["seed"] != second["seed"]
    assert first["text"] != second["text"]
    assert user.run(*command, "--seed", str(first["seed"])).object["text"] == first["text"]


def test_stop_string_ends_the_answer_and_is_removed(user: CommandLine) -> None:
    command = ("ask", "--json", "--grammar", fixed_reply_grammar("one two three", user.home), "hi")
    stopped = user.run(*command, "--stop", "three", "--stop", " two").object
    assert (stopped["text"], stopped["finish_reason"]) == ("one", "stop")
    variable = user.run(*command, env={"CEREBRUM_STOP": "two three"}).object
    assert (variable["text"], variable["finish_reason"]) == ("one", "stop")
    assert user.run(*command, env={"CEREBRUM_STOP": "two then"}).object["text"] == "one two three"


def test_schema_constrains_the_answer_to_json(user: CommandLine) -> None:
    schema = user.home / "schema.json"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}')
    done = user.run("ask", "--schema", schema, "hi")
    assert json.loads(done.out)["ok"] in (True, False)
    assert user.run("ask", "--json", "--schema", schema, "hi").object["final_answer"] is None
    truncated = user.run("ask", "-n", "2", "--schema", schema, "hi")
    assert truncated.code == 5
    assert truncated.err == (
        "error: answer truncated at 2 tokens, so it does not match the schema\n hint: raise --max-tokens\n"
    )


def test_verbose_writes_the_llama_cpp_log_to_stderr_only(user: CommandLine) -> None:
    done = user.run("ask", "--set", "verbose=on", "--grammar", fixed_reply_grammar("yes", user.home), "hi")
    assert (done.code, done.out) == (0, "yes\n")
    assert "llama_model_loader: loaded meta data" in done.err
    assert "create_tensor" not in done.err


def test_gpu_layers_without_gpu_support_give_a_note_and_a_hint(user: CommandLine) -> None:
    from cerebrum_cli.engine.llama.bindings import llama

    if llama.llama_supports_gpu_offload():
        pytest.skip("this build can")
    command = ("ask", "--gpu-layers", "5", "--grammar", fixed_reply_grammar("yes", user.home), "hi")
    done = user.run(*command)
    assert (done.code, done.out) == (0, "yes\n")
    message, hint = done.err.splitlines()
    assert message.startswith("note: --gpu-layers 5: ")
    assert f'CMAKE_ARGS="-DGGML_CUDA=on" {sys.executable} -m pip install' in hint
    assert user.run(*command, "-q").err == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", [(COMMAND,), (sys.executable, "-m", "cerebrum_cli")])
def test_version_is_printed(command: tuple[str, ...]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cerebrum {__version__}\n", "")


# Closed streams and interrupts.


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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_on_stdout_is_an_error(user: CommandLine) -> None:
    with open("/dev/full", "wb") as full:
        done = user.run_process("ask", "-n", "4", "hi", stdout=full)
    assert_error(done, 1, "standard output: No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "2>/dev/full"])
def test_ask_works_with_a_closed_standard_stream(user: CommandLine, redirection: str) -> None:
    grammar = fixed_reply_grammar("yes", user.home)
    process = subprocess.run(
        ["sh", "-c", f'"$0" ask --stats --grammar "$1" hi {redirection}', COMMAND, grammar],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=user.environment(),
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (0, b"" if redirection == ">&-" else b"yes\n")
    assert (process.stderr == b"") is redirection.startswith("2>")


@pytest.mark.slow
def test_interrupted_ask_prints_the_partial_answer(user: CommandLine) -> None:
    process = user.start("ask", "--stats", "--grammar", endless_reply_grammar(user.home), "hi")
    assert process.stdout and process.stderr
    begin = process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    text, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert (begin + text).endswith(b"\n")
    assert "finish reason cancelled" in err.decode()


@pytest.mark.slow
def test_interrupted_ask_prints_the_json_object(user: CommandLine) -> None:
    process = user.start("ask", "--json", "--set", "verbose=on", "--grammar", endless_reply_grammar(user.home), "hi")
    assert process.stdout and process.stderr
    assert any(b"reserve took" in line for line in process.stderr)  # it is loaded, and prefill is about to start
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["finish_reason"] == "cancelled"


# Errors.


def test_grammar_nested_too_deeply_is_a_usage_error(user: CommandLine) -> None:
    (user.home / "deep.gbnf").write_text("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000)
    done = user.run("ask", "--grammar", "deep.gbnf", "hi")
    assert_error(done, 2, "line 1, column 2010: more than 2000 nested groups", "simplify the grammar there")


def test_missing_model_may_have_a_name_that_no_file_can_have(new_user: CommandLine) -> None:
    assert_error(new_user.run("ask", "-m", "m" * 400, "hi"), 3, "m" * 400)


def test_too_long_prompt_exits_4_with_both_sizes(user: CommandLine) -> None:
    size = user.run("ask", "--dry-run", "--json", "word " * 60).object["prompt_tokens"]
    done = user.run("ask", "--ctx", str(size), "--stats", "word " * 60)
    assert done.out == ""
    problem = f"the prompt has {size} tokens, but the context has {size}"
    assert_error(done, 4, problem, "raise --ctx (trained context: 2048)")
    assert user.run("ask", "--ctx", str(size + 1), "word " * 60).code == 0
    for number in range(1, 6):
        (user.home / f"{number}.txt").write_text("word " * 200 * number)
    largest = "; largest files: 5.txt (5 kB), 4.txt (4 kB), 3.txt (3 kB)"
    assert user.run("ask", "--ctx", str(size), "-f", "*.txt", "Why?").err.endswith(f"{largest}\n")
    done = user.run("chat", "--ctx", str(size), stdin="/file 1.txt\n/file 2.txt\nWhy?\n")
    assert "; largest files: 2.txt (2 kB), 1.txt (1 kB); /undo removes a turn" in done.err


def broken_files(directory: Path, good: Path) -> Iterator[tuple[Path, str]]:
    """Yield invalid model files, and part of the error for each."""
    whole = good.read_bytes()
    for name, content, error in (
        ("truncated", whole[: len(whole) // 2], "truncated"),
        ("empty", b"", "the file is empty"),
        ("text", b"hello, I am not a model\n", "not a GGUF file"),
        ("page", b"<!DOCTYPE html><html>", "HTML page"),
        ("other-tensors", whole.replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dumb.weight"), "llama.cpp cannot load"),
    ):
        path = directory / f"{name}.gguf"
        path.write_bytes(content)
        yield path, error
    (directory / "directory.gguf").mkdir()
    yield directory / "directory.gguf", "is a directory"
    os.mkfifo(directory / "pipe.gguf")
    yield directory / "pipe.gguf", "is not a regular file"
    if os.geteuid() != 0:  # root may read everything
        shutil.copy(good, directory / "secret.gguf")
        (directory / "secret.gguf").chmod(0)
        yield directory / "secret.gguf", "Permission denied"


@pytest.mark.slow
def test_invalid_model_file_exits_1_with_one_error(new_user: CommandLine, chatml_model: Path) -> None:
    for path, error in broken_files(new_user.home, chatml_model):
        done = new_user.run("ask", "-m", path, "hi")
        assert done.out == ""
        assert_error(done, 1, f"error: {path}:", error)


# Settings.


def test_every_option_has_an_environment_variable(user: CommandLine) -> None:
    group: Any = typer.main.get_command(assembled())
    options = [each for command in group.commands.values() for each in command.params if each.opts[0].startswith("-")]
    flags = {option.opts[-1] for option in options if option.opts[-1] not in ("--help", "--set")}
    assert len(flags) > 30
    variables = {"CEREBRUM_" + flag.removeprefix("--").replace("-", "_").upper() for flag in flags}
    assert variables == {variable(option.name) for option in options if option.name not in ("help", "set")}
    assert user.run("runs", "list", env=dict.fromkeys(variables, "1")).err == ""  # they are known


def test_environment_overrides_config_and_argv_overrides_both(user: CommandLine) -> None:
    with (user.config / "config.toml").open("a") as config:
        config.write("max-tokens = 3\n")
    command = ("ask", "--json", "--grammar", fixed_reply_grammar("abcdefgh", user.home), "hi")
    variable = {"CEREBRUM_MAX_TOKENS": "4"}
    assert user.run(*command).object["completion_tokens"] == 3
    assert user.run(*command, env=variable).object["completion_tokens"] == 4
    assert user.run(*command, "-n", "5", env=variable).object["completion_tokens"] == 5
    assert user.run(*command, env={"CEREBRUM_MAX_TOKENS": ""}).object["completion_tokens"] == 3


@pytest.mark.slow
def test_invalid_config_file_does_not_stop_reports(user: CommandLine) -> None:
    (user.config / "config.toml").write_text("model = starter\n")
    for command in (("list",), ("show", "starter"), ("doctor", "--offline")):
        done = user.run(*command)
        assert (done.code, "config.toml:1: starter is text without quotes" in done.out + done.err) == (
            int(command[0] == "doctor"),
            True,
        )


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("ask -f /dev/zero hi", 4, "/dev/zero is larger than 64 MB"),
        ("ask --messages /dev/zero", 4, "/dev/zero is larger than 64 MB"),
        ("ask --grammar /dev/zero hi", 2, "/dev/zero is larger than 4 MB"),
        ("sessions import endless.json", 2, "endless.json is larger than 1.00 GB"),
        ("batch long.txt -o -", 2, "long.txt: line 2 is larger than 64 MB"),
        ("ask hi", 4, "standard input is larger than 64 MB"),
        ("batch /dev/zero -o -", 2, "/dev/zero: line 1 is larger than 64 MB"),
        ("batch - -o -", 2, "standard input: line 1 is larger than 64 MB"),
    ],
)
def test_endless_input_is_an_error(user: CommandLine, line: str, code: int, error: str) -> None:
    with (user.home / "endless.json").open("wb") as file:
        file.truncate(1_000_000_001)
    if "long.txt" in line:
        (user.home / "long.txt").write_bytes(b"hi\n" + b"a" * 65_000_000)
    done = user.run(*line.split(), stdin=bytes(65_000_000) if error.startswith("standard input") else None)
    assert done.out == ""
    assert_error(done, code, f"error: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=("ask", "dry run"))
def test_text_that_no_tokens_can_fit_is_refused_untokenized(user: CommandLine, options: tuple[str, ...]) -> None:
    (user.home / "long.txt").write_bytes(b"a" * 60_000_000)
    done = user.run("ask", "-f", "long.txt", *options)
    assert (done.code, done.out) == (4, "")
    assert re.search(r"^error: the prompt has at least \d+ tokens, but the context has \d+$", done.err, re.MULTILINE)
