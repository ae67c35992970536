"""Damaged and hostile model files: every command ends with an answer or one error, never natively or with a traceback.

`make fuzz` tries many more of the mutated files.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import write_architecture
from command_line import CommandLine, Finished, start_python
from gguf_files import string
from llama_engines import options
from mutated_models import Parts, mutated, strings, take_apart, write_mutated
from tiny_models import write_chatml, write_mistral, write_recurrent, write_sliding_window

from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.llama.first_load import file_key
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.gguf.parser import STRING

pytestmark = pytest.mark.slow

MAX_MEMORY = 2 * 2**30
FUZZED = 200
RUN_ALL = """
import dataclasses, json, pathlib, sys
from command_line import CommandLine
user, commands = CommandLine(pathlib.Path(sys.argv[1])), json.loads(sys.argv[2])
print(json.dumps([dataclasses.asdict(user.run(*arguments)) for arguments in commands]))
"""
CRASHING = (5, 140)  # of the mutated files; found by trying 400


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [
        write_mistral(folder / "mistral.gguf"),
        write_chatml(folder / "chatml.gguf"),
        write_recurrent(folder / "mamba.gguf"),
        write_sliding_window(folder / "gemma.gguf"),
    ]


def require_sound_exits(user: CommandLine, *models: Path) -> list[list[Finished]]:
    """Run each command that reads a model file on each of the models, in a child process that they must not end."""
    commands: list[list[str]] = []
    for path in models:
        recipe = path.with_suffix(".yaml")
        merged = {"merge_method": "linear", "models": [{"model": str(path), "parameters": {"weight": 1.0}}]}
        recipe.write_text(json.dumps(merged))
        commands += [
            ["ask", "-m", str(path), "-n", "4", "--no-log", "hi"],
            ["show", str(path)],
            ["ask", "-m", str(path), "--dry-run", "--format", "cerebrum", "hi"],
            ["ask", "-m", str(path), "-n", "4", "--format", "cerebrum", "--no-log", "hi"],
            ["merge", str(recipe), "-o", str(user.home / "out.gguf"), "--dry-run"],
        ]
    child = start_python(RUN_ALL, user.home, json.dumps(commands), home=user.home)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, ""), models
    finished = [Finished(**done) for done in json.loads(out)]
    for arguments, done in zip(commands, finished, strict=True):
        assert done.code in (0, 1, 2, 4), (arguments, done)
        assert "Traceback" not in done.err, (arguments, done.err)
        assert done.code == 0 or len(done.err.splitlines()) <= 4, (arguments, done.err)
    return [finished[at : at + 5] for at in range(0, len(finished), 5)]


def test_hostile_models_that_crash_llama_are_refused(models: list[Path], new_user: CommandLine) -> None:
    paths = [new_user.home / f"{number}.gguf" for number in CRASHING]
    for path, number in zip(paths, CRASHING, strict=True):
        path.write_bytes(mutated(models[number % len(models)], number))
    require_sound_exits(new_user, *paths)


def with_value(name: bytes, value: bytes) -> Callable[[Parts], Parts]:
    """Replace the value of the key that ends with a name."""

    def change(parts: Parts) -> Parts:
        entries = [entry._replace(value=value) if entry.key.endswith(name) else entry for entry in parts.entries]
        assert entries != parts.entries
        return parts._replace(entries=entries)

    return change


def with_tokens(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Parts], Parts]:
    def changed(parts: Parts) -> Parts:
        [tokens] = [entry for entry in parts.entries if entry.key.endswith(b"ggml.tokens")]
        items = change(strings(tokens.value))
        value = struct.pack("<IQ", STRING, len(items)) + b"".join(map(string, items))
        return with_value(b"ggml.tokens", value)(parts)

    return changed


NAN = b"\0\0\xc0\x7f"
HOSTILE: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "no tensors": (lambda parts: parts._replace(tensors=[], data=b""), "it has no tensors"),
    "many layers": (with_value(b"block_count", b"\1\2\0\0"), "it has 513 layers"),
    "epsilon": (with_value(b"rms_epsilon", NAN), "layer_norm_rms_epsilon is nan"),
    "duplicate tokens": (with_tokens(lambda items: [items[0]] * 2 + items[2:]), "llama.cpp crashes on it"),
    "broken UTF-8": (with_tokens(lambda items: [*items[:-1], b"\xff\xfe"]), ""),
    "unknown tokenizer": (with_value(b"tokenizer.ggml.model", string(b"x")), "llama.cpp cannot load it"),
}


def test_hostile_headers_get_one_error_line(chatml_model: Path, new_user: CommandLine) -> None:
    paths = []
    for name, (change, _) in HOSTILE.items():
        paths.append(new_user.home / f"{name}.gguf")
        paths[-1].write_bytes(change(take_apart(chatml_model.read_bytes())).to_bytes())
    finished = require_sound_exits(new_user, *paths)
    for (name, (_, problem)), (asked, *_) in zip(HOSTILE.items(), finished, strict=True):
        assert problem in asked.err, name
        assert asked.code == bool(problem), name


def test_model_is_tried_in_a_child_process_once_for_each_use(chatml_model: Path, new_user: CommandLine) -> None:
    remembered = new_user.home / "data" / "cerebrum" / "loaded_files.json"
    remembered.parent.mkdir(parents=True)
    remembered.write_text("[]")
    path = new_user.home / "model.gguf"
    for copy in range(2):  # the time of the file changes
        path.write_bytes(chatml_model.read_bytes())
        for option, files in (("--dry-run", 1), ("-n1", 2), ("--dry-run", 2), ("-n1", 2)):  # the vocabulary, the model
            assert new_user.run("ask", "-m", path, option, "--no-log", "hi").code == 0
            assert len(json.loads(remembered.read_text())) == 2 * copy + files


def test_model_that_crashes_with_several_sequences_runs_them_singly(new_user: CommandLine) -> None:
    """A child process finds that out once, and only if there are several."""
    path = write_architecture(new_user.home / "plamo2.gguf", "plamo2")
    remembered = new_user.home / "data" / "cerebrum" / "loaded_files.json"
    remembered.parent.mkdir(parents=True)
    remembered.write_text(json.dumps([file_key(path)]))
    rows = "".join(f"Question {number}\n" for number in range(6))

    def answers(parallel: int) -> tuple[list[str], str]:
        given = ("--parallel", str(parallel), "-n", "4", "--input-format", "txt", "-o", "-", "-")
        done = new_user.run("batch", "-m", path, *given, stdin=rows)
        assert done.code == 0, done.err
        return sorted(json.loads(line)["text"] for line in done.out.splitlines()), done.err

    singly, notices = answers(1)
    assert ("several" in notices, len(json.loads(remembered.read_text()))) == (False, 1)
    for _ in range(2):
        together, notices = answers(3)
        assert together == singly
        assert "llama.cpp crashes when this model runs several sequences\n      running them one at a time\n" in notices
        assert json.loads(remembered.read_text()) == [file_key(path), f"{file_key(path)} single"]
    voted = new_user.run("ask", "-m", path, "-n", "4", "--votes", "3", "--no-log", "hi")
    assert voted.code in (0, 5) and "several" in voted.err
    chat = new_user.run("chat", "-m", path, "-n", "4", stdin="/votes 3\nhi\n")
    assert chat.code == 0 and "several" not in chat.err, "most chats never run several"


def test_verified_model_is_tried_with_several_sequences_only(tmp_path: Path) -> None:
    path, remembered = write_architecture(tmp_path / "plamo2.gguf", "plamo2"), tmp_path / "loaded_files.json"
    for slots, expected in ((1, None), (3, [f"{file_key(path)} single"])):
        given = options(path, slots=slots)
        given = replace(given, file=replace(given.file, is_verified=True))
        backend = open_llama(given, lambda _: None, StopFlag(), loaded_files=remembered)
        assert backend.slots == 1
        backend.close()
        assert (json.loads(remembered.read_text()) if remembered.exists() else None) == expected


def test_model_that_runs_several_sequences_is_tried_once(new_user: CommandLine) -> None:
    path = write_architecture(new_user.home / "mamba2.gguf", "mamba2")
    remembered = new_user.home / "data" / "cerebrum" / "loaded_files.json"
    for _ in range(2):
        done = new_user.run("ask", "-m", path, "-n", "4", "--votes", "3", "--no-log", "hi")
        assert done.code in (0, 5) and "concurrent" not in done.err
        assert json.loads(remembered.read_text())[-2:] == [file_key(path), f"{file_key(path)} several"]


def test_load_that_exhausts_its_cpu_time_is_ended_as_such() -> None:
    """At the hard limit, the system would kill it, and the file would be loaded in this process."""
    code = (
        "from cerebrum_cli.engine.llama import first_load as f; f.MAX_CPU_S = 1; f.limit_resources()\nwhile True: pass"
    )
    child = start_python(code)
    assert child.wait(30) == -signal.SIGXCPU
    child.communicate()


def test_first_load_is_repeated_for_another_part_of_a_model(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"x")
    before = file_key(parts[0])
    parts[1].write_bytes(b"other")
    assert file_key(parts[0]) != before


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(20))
def test_fuzzed_models_end_no_command_natively(part: int, models: list[Path], new_user: CommandLine) -> None:
    for number, path in enumerate(write_mutated(models, new_user.home, FUZZED)):
        if number % 20 == part:
            require_sound_exits(new_user, path)
        path.unlink()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MAX_MEMORY
