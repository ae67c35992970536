"""Damaged and hostile model files: every command ends with an answer or one error, never natively or with a traceback.

`make fuzz` tries many more of the mutated files.
"""

import json
import random
import resource
import signal
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from architectures import write_architecture
from command_line import CommandLine, Finished, start_python
from tiny_models import write_chatml, write_mistral, write_recurrent, write_sliding_window

from cerebrum_cli.engine.llama.first_load import file_key
from cerebrum_cli.gguf.contents import Value
from cerebrum_cli.weights.table import ARCHITECTURE, encode_header, read_table

pytestmark = pytest.mark.slow

MAX_MEMORY = 2 * 2**30
FUZZED = 200
RUN_ALL = """
import dataclasses, json, pathlib, sys
from command_line import CommandLine
user, commands = CommandLine(pathlib.Path(sys.argv[1])), json.loads(sys.argv[2])
print(json.dumps([dataclasses.asdict(user.run(*arguments)) for arguments in commands]))
"""
CRASHING = (13, 87)  # of the mutated files; found by trying 200
WRITERS = (write_mistral, write_chatml, write_recurrent, write_sliding_window)

Metadata = dict[str, Value]
TensorRow = tuple[str, tuple[int, ...], int]

ODD_INTEGERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
ODD_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
ODD_STRINGS = (b"", b"\xff\xfe", b"bert", b"t5", b"gpt2", b"llama", b"rwkv", b"no_vocab", b"x" * 5000, b"\0", b"mamba")
ODD_TOKENS = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"<0xZZ>", b"<0x>", b"", b"y" * 100_000)
ODD_VALUES = (Value("STRING", "x"), Value("FLOAT32", 1.5), Value("BOOL", True), Value("ARRAY", (7,), "UINT32"))
ODD_NAMES = ("x", "output.weight", "blk.999.attn_q.weight", "token_embd.weight")


def odd_value(kind: str, random: random.Random) -> Any:
    if kind == "BOOL":
        return random.random() < 0.5
    if not kind.startswith(("INT", "UINT")):
        return random.choice(ODD_STRINGS if kind == "STRING" else ODD_FLOATS)
    bits = int(kind.lstrip("UINT"))
    value = random.choice(ODD_INTEGERS) & (2**bits - 1)
    return value - 2**bits if kind.startswith("INT") and value >> (bits - 1) else value


def change_metadata(metadata: Metadata, random: random.Random) -> None:
    """Give a key an odd value or type, drop it, or shorten an array, repeat one of its items, or change one."""
    change = random.choice(("value", "value", "type", "drop", "array", "array"))
    if change == "value":
        key = random.choice([key for key, value in metadata.items() if value.type != "ARRAY"])
        metadata[key] = metadata[key]._replace(content=odd_value(metadata[key].type, random))
    elif change == "type":
        metadata[random.choice(list(metadata))] = random.choice(ODD_VALUES)
    elif change == "drop":
        del metadata[random.choice([key for key in metadata if key != ARCHITECTURE])]
    else:
        key = random.choice([key for key, value in metadata.items() if value.type == "ARRAY"])
        items, kind = list(metadata[key].content), metadata[key].item_type
        at = random.randrange(len(items))
        odd = random.choice(ODD_TOKENS) if kind == "STRING" else odd_value(kind, random)
        items = random.choice([items[:at], [items[at]] * len(items), [*items[:-1], items[at]], [*items[:at], odd]])
        metadata[key] = metadata[key]._replace(content=tuple(items))


def change_tensor(tensors: list[TensorRow], random: random.Random) -> None:
    """Rename, reshape, retype or drop a tensor; its bytes stay."""
    index = random.randrange(len(tensors))
    name, shape, kind = tensors[index]
    other_shape = shape[::-1] if len(shape) > 1 else (shape[0] // 2, 2)
    rows = [(random.choice(ODD_NAMES), shape, kind), (name, other_shape, kind), (name, (*shape, 1)[:4], kind)]
    rows.append((name, shape, random.choice([0, 1, 2, 8, 12, 16, 24, 26, 30, 39])))
    tensors[index : index + 1] = random.choice([[row] for row in rows] + [[]])


def changed(model: Path, change: Callable[[Metadata, list[TensorRow]], None]) -> bytes:
    """The model with other metadata or tensors, which `change` replaces in place."""
    table = read_table("model", [model])
    metadata, tensors = dict(table.metadata), [tensor[:3] for tensor in table.tensors.values()]
    change(metadata, tensors)
    return encode_header(metadata, tensors) + model.read_bytes()[next(iter(table.tensors.values())).offset :]


def mutated(model: Path, number: int) -> bytes:
    """Apply one to three changes to a model, chosen by its number."""
    chosen = random.Random(number)

    def change(metadata: Metadata, tensors: list[TensorRow]) -> None:
        for _ in range(chosen.choice([1, 1, 2, 3])):
            if chosen.random() < 0.15:
                change_tensor(tensors, chosen)
            else:
                change_metadata(metadata, chosen)

    return changed(model, change)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write(folder / f"{write.__name__}.gguf") for write in WRITERS]


def require_sound_exits(user: CommandLine, *models: Path) -> list[list[Finished]]:
    """Run each command that reads a model file on each of the models, in a child process that they must not end."""
    commands: list[list[str]] = []
    for path in models:
        recipe = path.with_suffix(".yaml")
        merged = {"merge_method": "linear", "models": [{"model": str(path), "parameters": {"weight": 1.0}}]}
        recipe.write_text(json.dumps(merged))
        ask, plain = ["ask", "-m", str(path), "-n", "4", "--no-log", "hi"], ["--format", "cerebrum"]
        commands += [ask, ["show", str(path)], [*ask, *plain, "--dry-run"], [*ask, *plain]]
        commands.append(["merge", str(recipe), "-o", str(user.home / "out.gguf"), "--dry-run"])
    child = start_python(RUN_ALL, user.home, json.dumps(commands), home=user.home)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, ""), models
    finished = [Finished(**done) for done in json.loads(out)]
    for arguments, done in zip(commands, finished, strict=True):
        assert done.code in (0, 1, 2, 4) and "Traceback" not in done.err, (arguments, done)
        assert done.code == 0 or len(done.err.splitlines()) <= 4, (arguments, done.err)
    return [finished[at : at + 5] for at in range(0, len(finished), 5)]


def replaced(key: str, content: Any) -> Callable[[Metadata, list[TensorRow]], None]:
    def replace(metadata: Metadata, _: list[TensorRow]) -> None:
        metadata[key] = metadata[key]._replace(content=content)

    return replace


TOKENS = tuple(map(str.encode, tiny_models.bpe_metadata()["tokenizer.ggml.tokens"]))  # type: ignore[arg-type]
HOSTILE: dict[str, tuple[Callable[[Metadata, list[TensorRow]], None], str]] = {
    "no tensors": (lambda _, tensors: tensors.clear(), "a vocabulary without tensors"),
    "many layers": (replaced("llama.block_count", 513), "it has 513 layers"),
    "epsilon": (replaced("llama.attention.layer_norm_rms_epsilon", nan), "layer_norm_rms_epsilon is nan"),
    "duplicate tokens": (replaced("tokenizer.ggml.tokens", TOKENS[:1] + TOKENS[:-1]), "llama.cpp crashes on it"),
    "broken UTF-8": (replaced("tokenizer.ggml.tokens", (*TOKENS[:-1], b"\xff\xfe")), ""),
    "unknown tokenizer": (replaced("tokenizer.ggml.model", "x"), "llama.cpp cannot load it"),
}


def test_hostile_models_get_one_error_line(chatml_model: Path, models: list[Path], new_user: CommandLine) -> None:
    contents = {name: changed(chatml_model, change) for name, (change, _) in HOSTILE.items()}
    contents |= {str(number): mutated(models[number % len(models)], number) for number in CRASHING}
    for name, content in contents.items():
        (new_user.home / f"{name}.gguf").write_bytes(content)
    finished = require_sound_exits(new_user, *(new_user.home / f"{name}.gguf" for name in contents))
    problems = [*(problem for _, problem in HOSTILE.values()), *["llama.cpp crashes on it"] * len(CRASHING)]
    for name, problem, (asked, *_) in zip(contents, problems, finished, strict=True):
        assert problem in asked.err, name
        assert asked.code == (2 if problem else 0), name


def test_model_is_tried_in_a_child_process_once(chatml_model: Path, new_user: CommandLine) -> None:
    remembered = new_user.home / "data" / "cerebrum" / "loaded_files.json"
    remembered.parent.mkdir(parents=True)
    remembered.write_text("[]")
    path = new_user.home / "model.gguf"
    for copy in range(2):  # the time of the file changes
        path.write_bytes(chatml_model.read_bytes())
        for option in ("--dry-run", "-n1"):
            assert new_user.run("ask", "-m", path, option, "--no-log", "hi").code == 0
            assert len(json.loads(remembered.read_text())) == copy + 1


def test_model_that_crashes_with_several_sequences_runs_them_singly(new_user: CommandLine) -> None:
    path = write_architecture(new_user.home / "plamo2.gguf", "plamo2")
    rows = "".join(f"Question {number}\n" for number in range(6))

    def answers(parallel: int) -> tuple[list[str], str]:
        given = ("--parallel", str(parallel), "-n", "4", "-o", "-", "-")
        done = new_user.run("batch", "-m", path, *given, stdin=rows)
        assert done.code == 0, done.err
        return sorted(json.loads(line)["text"] for line in done.out.splitlines()), done.err

    (singly, no_notices), (together, notices) = answers(1), answers(3)
    assert together == singly and "several" not in no_notices
    assert "llama.cpp crashes when this model runs several sequences\n      running them one at a time\n" in notices
    chat = new_user.run("chat", "-m", path, "-n", "4", stdin="hi\n")
    assert chat.code == 0 and "several" not in chat.err, "most chats never run several"


def test_load_that_exhausts_its_cpu_time_is_ended_as_such() -> None:
    """At the hard limit, the system would kill it, and the file would be loaded in this process."""
    limited = "from cerebrum_cli.engine.llama import first_load as f; f.MAX_CPU_S = 1; f.limit_resources()"
    child = start_python(f"{limited}\nwhile True: pass")
    assert child.wait(30) == -signal.SIGXCPU
    child.communicate()


def test_first_load_is_repeated_for_another_part_of_a_model(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    for part in (first, second):
        part.write_bytes(b"x")
    before = file_key(first)
    second.write_bytes(b"other")
    assert file_key(first) != before


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(20))
def test_fuzzed_models_end_no_command_natively(part: int, models: list[Path], new_user: CommandLine) -> None:
    for number in range(part, FUZZED, 20):
        path = new_user.home / f"mutated-{number}.gguf"
        path.write_bytes(mutated(models[number % len(models)], number))
        require_sound_exits(new_user, path)
        path.unlink()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MAX_MEMORY
