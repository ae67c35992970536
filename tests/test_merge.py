"""`cerebrum merge`, and pulling a model that is merged: output, errors and installed models."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import COMMAND, CommandLine, Finished
from hub_user import CATALOGUED, HubUser, cleaned, hub_user, named
from mistral_shape import METADATA, model_tensors
from person import Person
from scripted_command import runtime_for
from test_merge_files import LAYERS, assert_copied, metadata, parts, stack, stored
from tiny_models import Shape, write_chatml, write_quantized

from cerebrum_cli.catalogue.cache import Cache
from cerebrum_cli.core.files import fsync_directory
from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams

SMALL = Shape(layers=4, width=256, heads=8, kv_heads=2, ffn=512)
TWICE = stack(("tiny", 0, 4), ("tiny", 0, 4))  # 2.7 MB
CATALOGUE = """
[models.tiny]
system = "Tiny-1.0"
aliases = ["small"]
repo_id = "someone/Tiny-GGUF"
file = "Tiny-{quant}.gguf"
format = "collective-cognition"

[models.own]
system = "Own-1.0"
recipe = "own.yaml"
file = "Own-{quant}.gguf"
quantizations = {Q4_K_M = 2700000}
"""
PROMPT = "USER: Why?\nASSISTANT:"  # as the catalogue above has it
OUT = ("-o", "out.gguf")


class Home:
    """A user's home, in which the test stands: a model in a file, which the catalogue knows, and a recipe."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.command = CommandLine(path)
        (self.command.config / "models.toml").write_text(CATALOGUE)
        (self.command.config / "own.yaml").write_text(TWICE)
        self.model = Path(shutil.copy(model, path / "Tiny-Q4_K_M.gguf"))
        (path / "twice.yaml").write_text(TWICE)

    def run(self, *arguments: str | Path) -> Finished:
        """Run one command line in this process; no model can be asked, and nobody else's Hugging Face cache is seen."""
        out, err = StringIO(), StringIO()
        runtime = runtime_for({}, self.path, Streams(out, err, None, False, False, False))
        runtime.library.given_cache = Cache(self.path / "hub")
        code = run([str(argument) for argument in arguments], runtime)
        return Finished(code, out.getvalue(), err.getvalue())

    def merge(self, *arguments: str | Path) -> Finished:
        """Merge the model with itself."""
        return self.run("merge", "twice.yaml", "--source", f"tiny={self.model.name}", *arguments)

    def made(self, *arguments: str | Path) -> Finished:
        """Merge the model with itself, which must succeed."""
        done = self.merge(*OUT, *arguments)
        assert done.code == 0, done.err
        return done

    @property
    def files(self) -> list[str]:
        """The names of all that lies in the home beside directories."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `list --json` says."""
        rows: list[dict[str, Any]] = self.run("list", "--json").object
        return rows

    def prompt(self, model: str | Path) -> str:
        """Return how a model would be asked."""
        done = self.command.run("ask", "--dry-run", "-q", "-m", model, "Why?")
        assert done.code == 0, done.err
        return done.out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of four layers as a quantised file has them."""
    return write_quantized(tmp_path_factory.mktemp("tiny") / "tiny.gguf", shape=SMALL)


@pytest.fixture
def home(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a home, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, tiny)


def digests(paths: Sequence[Path]) -> str:
    """Return what sha256sum says of files."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)


def test_a_merge_prints_its_digest_as_sha256sum_reads_it(home: Home) -> None:
    done = home.made()
    assert done.out == digests([home.path / "out.gguf"])
    [progress, here] = done.err.splitlines()
    assert (progress[:7], here) == ("merge: ", "out is installed: cerebrum ask -m out")
    assert_copied(stored([home.path / "out.gguf"]), stored([home.model]), [0, 1, 2, 3] * 2)
    assert home.merge("-o", "other.GGUF", "-q").err == ""


def test_a_split_merge_prints_the_digests_of_its_files(home: Home) -> None:
    done = home.made("--split-size", "1.5 MB")
    paths = parts(home.path / "out-00001-of-00002.gguf")
    assert done.out == digests(paths)
    assert home.files == ["Tiny-Q4_K_M.gguf", *(path.name for path in paths), "twice.yaml"]
    assert_copied(stored(paths), stored([home.model]), [0, 1, 2, 3] * 2)
    [row] = home.rows
    assert (row["name"], row["path"]) == ("out", str(paths[0]))
    assert row["size"] == sum(path.stat().st_size for path in paths)
    assert home.prompt("out") == PROMPT
    done = home.merge(*OUT, "--split-size", "1.5MB")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: out-00001-of-00002.gguf already exists")


def test_as_json_a_merge_says_what_it_has_planned_and_written(home: Home) -> None:
    dry = home.merge("--dry-run", "--json", *OUT)
    assert (dry.code, dry.err, home.files) == (0, "", ["Tiny-Q4_K_M.gguf", "twice.yaml"])
    assert not (home.path / "data").exists()
    done = home.made("--json", "-q")
    assert done.err == ""
    planned, told = dry.object, done.object
    [file] = told.pop("files")
    assert [{"path": file["path"], "size": file["size"]}] == planned.pop("files")
    assert f"{file['sha256']}  {file['path']}\n" == digests([home.path / "out.gguf"])
    assert (told.pop("reference"), told.pop("free") > 0, planned.pop("free") > 0) == ("out", True, True)
    assert told == planned
    assert told["layers"][5] == {"layer": 5, "sources": [{"model": "tiny", "layer": 1}]}
    assert (told["name"], told["merge_method"], told["models"]) == ("out", "passthrough", {"tiny": "Tiny-Q4_K_M"})
    assert (told["tensors"], told["size"]) == (75, (home.path / "out.gguf").stat().st_size)


DRY_RUN = """\
layers  model  source layers
0-7     seven  0-7
8-15    seven  4-11
16-23   seven  8-15
24-31   seven  12-19
32-39   seven  16-23
40-47   seven  20-27
48-55   seven  24-31

parameters  12,476,420,096
tensors     507 (Q4_K 345, F32 113, Q6_K 49)
size        7.44 GB (7442684992 bytes), 100% copied unchanged
KV cache    229,376 bytes per token
memory      93 MB to merge, 9.86 GB to run with a context of 8192 tokens
disk        7.44 GB needed, 12.35 GB free
"""


def test_a_dry_run_of_the_12b_shows_its_layers_and_what_it_takes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.application.merging.merge.thread_count", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345_678_901))
    write_hollow(home.path / "seven.gguf")
    done = home.run("merge", "Cerebrum-1.0-12.25b", "--source", "cerebrum-7b=seven.gguf", "--dry-run")
    assert (done.code, done.err, done.out) == (0, "", DRY_RUN)


def write_hollow(path: Path) -> None:
    """Write a file of exactly the 7B's shape, none of whose weights takes room on the disk."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        kind = GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    tensors = list(model_tensors())
    for each in tensors:
        floats = np.dtype(np.float32)
        writer.add_tensor_info(each.name, each.dimensions, floats, each.size, raw_dtype=each.encoding.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + sum(tensor.size for tensor in tensors))


GIVE = "use NAME=MODEL, where NAME is tiny"


@pytest.mark.parametrize(
    ("arguments", "what", "do"),
    [
        ([], "no output file given (-o)", "name a file: -o OUT.gguf"),
        (["-o", "out.bin"], "-o out.bin: not a .gguf file name", "use -o out.bin.gguf"),
        (["-o", "no/out.gguf"], "-o no/out.gguf: directory no does not exist", "create it first, or write elsewhere"),
        (["-o", "a.gguf"], "-o a.gguf: is a directory", "name a file"),
        (["-o", "Tiny-Q4_K_M.gguf"], "Tiny-Q4_K_M.gguf is a source of this merge", "choose another output file"),
        (["-o", "link.gguf"], "link.gguf is a source of this merge", "choose another output file"),
        ([*OUT, "--split-size", "4 ells"], "'4 ells' is not a size of at least 1 MB", "write it as 4GB or 500MB"),
        ([*OUT, "--split-size", "900k"], "'900k' is not a size of at least 1 MB", "write it as 4GB or 500MB"),
        ([*OUT, "--name", "starter"], "the name starter belongs to another model", "choose another with --name"),
        ([*OUT, "--name", "SMALL"], "the name SMALL belongs to another model", "choose another with --name"),
        ([*OUT, "--source", "tidy=b"], "--source tidy=b: the recipe does not name this model", GIVE),
        ([*OUT, "--source", "tiny"], "--source tiny: the recipe does not name this model", GIVE),
    ],
)
def test_what_cannot_be_merged_as_asked_is_told_and_nothing_is_written(
    arguments: list[str], what: str, do: str, home: Home
) -> None:
    (home.path / "a.gguf").mkdir()
    (home.path / "link.gguf").symlink_to("Tiny-Q4_K_M.gguf")
    before = home.files
    done = home.merge(*arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {what}\n  try: {do}\n")
    assert (home.files, home.rows) == (before, [])


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("none.yaml", "none.yaml: no such recipe"),
        ("starter", "starter: no such recipe"),
        ("a", "a: is a directory"),
        ("Tiny-Q4_K_M.gguf", "Tiny-Q4_K_M.gguf: larger than 1048576 bytes"),
        ("short.gguf", "short.gguf: not UTF-8 text"),
        ("broken.yaml", "broken.yaml: slices[0].sources[0].layer_range: not a range of layers"),
    ],
)
def test_what_is_no_recipe_is_told(recipe: str, what: str, home: Home) -> None:
    (home.path / "a").mkdir()
    (home.path / "short.gguf").write_bytes(b"GGUF\xff")
    (home.path / "broken.yaml").write_text(TWICE.replace("[0, 4]", "[4, 0]"))
    done = home.run("merge", recipe, *OUT)
    error, do = done.err.splitlines()
    assert (done.code, done.out, error) == (2, "", f"error: {what}")
    assert do.startswith("  try: ")


def test_a_model_that_is_not_here_is_told_with_what_helps(home: Home) -> None:
    (home.path / "published.yaml").write_text(stack(("/home/him/Tiny", 0, 4)))
    for arguments, error, do in (
        (
            ["published.yaml"],
            "the recipe's model /home/him/Tiny: /home/him/Tiny: file not found",
            "name the model to use: --source /home/him/Tiny=MODEL",
        ),
        (
            ["published.yaml", "--source", "/home/him/Tiny=./no.gguf"],
            "no.gguf: file not found",
            "check the path",
        ),
        (["cerebrum-12b", "--offline"], "cerebrum-7b is not downloaded", "cerebrum pull cerebrum-7b"),
        (["twice.yaml", "--dry-run"], "tiny is not downloaded", "cerebrum pull tiny"),
    ):
        done = home.run("merge", *arguments, *OUT)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith(f"error: {error}\n  try: {do}")
    done = home.run("merge", "published.yaml", "--source", "/home/him/Tiny=Tiny-Q4_K_M.gguf", *OUT)
    assert (done.code, home.rows[0]["merged_from"]) == (0, ["Tiny-Q4_K_M.gguf"])


def test_a_model_is_taken_by_any_of_its_names(home: Home) -> None:
    assert home.run("pull", home.model, "--name", "mine").code == 0
    expected = home.made().out.split()[0]
    for model in ("mine", "tiny", "Small:q4_k_m", home.model, "./Tiny-Q4_K_M.gguf"):
        done = home.run("merge", "twice.yaml", "--source", f"tiny={model}", *OUT, "-y")
        assert (done.code, done.out) == (0, f"{expected}  out.gguf\n")
    assert [row["merged_from"] for row in home.rows] == [[], ["mine"]]


def test_what_is_there_is_only_replaced_where_that_is_agreed_to(home: Home) -> None:
    out = home.path / "out.gguf"
    out.write_bytes(b"precious")
    done = home.merge(*OUT)
    said = "error: out.gguf already exists\n  try: choose another file, or replace it with -y\n"
    assert (done.code, done.out, done.err, out.read_bytes()) == (2, "", said, b"precious")
    assert home.merge(*OUT, "-y").out == digests([out])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_terminal_somebody_is_asked_before_a_file_is_replaced(home: Home) -> None:
    out = home.path / "out.gguf"
    out.write_bytes(b"precious")
    arguments = [COMMAND, "merge", "twice.yaml", "--source", "tiny=Tiny-Q4_K_M.gguf", *OUT]
    for answer, code in (("\r", 2), ("y\r", 0)):
        person = Person(arguments, home.command.environment({"TERM": "xterm"}), home.path)
        person.wait_for("out.gguf already exists. Replace it? [y/N]")
        assert out.read_bytes() == b"precious"
        person.type(answer)
        assert person.end() == code
    assert home.rows[0]["size"] == out.stat().st_size


def test_a_name_that_is_taken_is_free_again_for_the_same_file(home: Home) -> None:
    home.made("--name", "tower")
    done = home.merge("-o", "other.gguf", "--name", "Tower")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: the name Tower belongs to another model")
    home.made("-y", "--name", "tower")
    (home.path / "out.gguf").unlink()
    assert home.merge("-o", "other.gguf", "--name", "tower").code == 0
    assert [(row["name"], row["path"]) for row in home.rows] == [("tower", str(home.path / "other.gguf"))]


@pytest.mark.parametrize("name", ["out-00002-of-00002.gguf", "out-00001-of-00002.gguf"])
def test_a_file_that_would_pass_for_a_part_of_another_is_refused(name: str, home: Home) -> None:
    done = home.merge("-o", name)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 2)
    assert (home.rows, name in home.files) == ([], False)


def test_weights_are_written_in_another_type(home: Home) -> None:
    home.made("--type", "q8_0")
    types = {name.split(".")[-2]: each.type for name, each in stored([home.path / "out.gguf"]).items()}
    assert set(types.values()) == {"Q8_0", "F32"}
    assert {name for name, kind in types.items() if kind == "F32"} == {"attn_norm", "ffn_norm", "output_norm"}
    assert home.rows[0]["quantization"] == "Q8_0"
    done = home.command.run("ask", "-m", "out", "-n", "4", "--json", "Why?")
    assert (done.code, done.object["completion_tokens"]) == (0, 4), done.err


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=60_000_000))
    done = home.merge(*OUT)
    said = "not enough disk space: 60 MB free, 67 MB needed"
    assert (done.code, done.err) == (1, f"error: {home.path.resolve()}: {said}\n  try: free 7 MB, or write elsewhere\n")
    (home.path / "out.gguf.part").write_bytes(bytes(7_000_000))  # which will be overwritten
    home.made()


def test_an_interrupt_once_the_merge_is_whole_does_not_deny_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_and_sync(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fsync_directory(folder)

    monkeypatch.setattr("cerebrum_cli.merge.output_files.fsync_directory", press_and_sync)
    done = home.merge(*OUT)
    is_there = "out.gguf" in home.files
    assert ([row["name"] for row in home.rows], "nothing was written" in done.err) == (["out"] * is_there, not is_there)


def test_models_that_differ_are_refused_with_what_differs(home: Home) -> None:
    other = write_chatml(home.path / "other.gguf")
    (home.path / "both.yaml").write_text(stack(("tiny", 0, 4), ("other", 0, 2)))
    done = home.run("merge", "both.yaml", *OUT, "--source", "tiny=Tiny-Q4_K_M.gguf", "--source", f"other={other}")
    what = "other.gguf differs from Tiny-Q4_K_M.gguf in llama.attention.head_count: 4 and 8"
    do = "merge models with the same architecture, shape and vocabulary"
    assert (done.code, done.out, done.err) == (1, "", f"error: {what}\n  try: {do}\n")


def test_a_mixtral_with_one_tensor_an_expert_is_refused(home: Home) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(home.path / "old.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_gate.0.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = home.run("merge", "twice.yaml", *OUT, "--source", "tiny=old.gguf")
    assert (done.code, done.err.count("\n")) == (1, 2)
    assert "made before April 2024 with one tensor per expert" in done.err


def test_a_merge_is_a_model_like_any_other(home: Home) -> None:
    assert home.run("pull", home.model).code == 0
    home.made()
    made = home.rows[1]
    assert {key: made[key] for key in ("name", "source", "format", "quantization", "merged_from", "default")} == {
        "name": "out",
        "source": "merge",
        "format": "collective-cognition",
        "quantization": "Q4_K_M",
        "merged_from": ["Tiny-Q4_K_M"],
        "default": False,
    }
    [line] = [line for line in home.run("list").out.splitlines() if " out " in line]
    assert line.endswith("/out.gguf, merged from Tiny-Q4_K_M")
    shown = home.run("show", "out", "--json").object
    assert (shown["merged_from"], shown["layers"], shown["name"]) == (["Tiny-Q4_K_M"], 8, "out")
    assert shown["sha256"] == hashlib.sha256((home.path / "out.gguf").read_bytes()).hexdigest()
    kept = shown["metadata"]
    assert kept["cerebrum.merge.recipe"] == TWICE
    assert (kept["general.name"], kept["general.base_model.0.name"]) == ("out", "tiny quantized")
    assert "merged_from         Tiny-Q4_K_M\n" in home.run("show", "out").out


def test_a_merge_is_asked_as_its_source_wherever_it_lies(home: Home) -> None:
    home.made()
    reply = home.command.run("ask", "-m", "out", "-n", "4", "--json", "Why?").object
    assert (reply["format"], reply["completion_tokens"]) == ("collective-cognition", 4)
    assert home.prompt("out") == home.prompt(home.model) == PROMPT
    elsewhere = home.path / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copy(home.path / "out.gguf", elsewhere / "copy.gguf")
    assert home.run("pull", copy).code == 0
    assert home.prompt("copy") == PROMPT
    assert [row["merged_from"] for row in home.rows] == [["Tiny-Q4_K_M.gguf"]] * 2
    plain = write_quantized(home.path / "plain.gguf", shape=SMALL)  # of no row: its own template decides
    assert home.run("merge", "twice.yaml", "--source", f"tiny={plain}", "-o", "third.gguf").code == 0
    assert (home.prompt("third"), home.rows[2]["format"]) == (home.prompt(plain), "embedded")


def test_a_merge_that_is_removed_is_forgotten_and_its_file_stays(home: Home) -> None:
    home.made()
    done = home.run("rm", "-y", "out")
    assert (done.code, done.err) == (0, f"removed out from the list; kept {home.path / 'out.gguf'}\n")
    assert (home.rows, "out.gguf" in home.files) == ([], True)


def test_a_name_that_no_model_can_have_is_asked_for_too(home: Home) -> None:
    (home.path / "spaced.yaml").write_text(stack(("my model", 0, 4)))
    done = home.run("merge", "spaced.yaml", *OUT)
    assert (done.code, done.err.splitlines()[1]) == (3, "  try: name the model to use: --source my model=MODEL")


def test_a_file_that_is_called_as_a_row_is_no_recipe_of_it(home: Home) -> None:
    assert home.run("pull", home.model).code == 0
    (home.path / "own").write_text("no recipe")
    assert home.run("pull", "own:Q4_K_M").code == 0


def test_a_recipe_says_what_its_file_is_called_inside(home: Home) -> None:
    (home.path / "named.yaml").write_text(f"name: Tower of Two\n{TWICE}")
    assert home.run("merge", "named.yaml", "--source", f"tiny={home.model}", *OUT).code == 0
    assert metadata(home.path / "out.gguf")["general.name"].endswith(b"Tower of Two")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_row_of_the_users_own_is_pulled_by_its_recipe(is_link: bool, home: Home) -> None:
    if is_link:
        (home.path / "elsewhere").mkdir()
        (home.path / "data").symlink_to("elsewhere")
    assert home.run("pull", home.model).code == 0
    done = home.run("pull", "own")
    path = home.path / "data/cerebrum/models/merged/Own-Q4_K_M.gguf"
    assert (done.code, cleaned(done).splitlines()[-1]) == (0, f"installed own:Q4_K_M: {path.resolve()}")
    assert metadata(path)["general.name"].endswith(b"Own-1.0")
    assert (home.rows[1]["reference"], home.rows[1]["merged_from"]) == ("own:Q4_K_M", ["Tiny-Q4_K_M"])
    removed = home.run("rm", "-y", "own")
    assert (removed.err, path.exists(), home.model.exists()) == (
        "deleted own:Q4_K_M, freed 3 MB\n",
        False,
        True,
    )


SMALL_12B = "[models.cerebrum-12b]\nquantizations = {Q4_K_M = 19000000}\n"
TWELVE = "Cerebrum-1.0-12.25B-Q4_K_M.gguf"


@pytest.fixture
def user(tmp_path: Path) -> Iterator[HubUser]:
    """Return a user before a Hub that has the 7B, small, in one quantisation, and whose disk need hold no more."""
    with hub_user(tmp_path) as each:
        (each.command.config / "models.toml").write_text(SMALL_12B)
        each.hub.repository(CATALOGUED, {named("Q4_K_M"): write_quantized(tmp_path / "seven.gguf")})
        yield each


def test_pulling_the_12b_pulls_the_7b_and_merges_it(user: HubUser) -> None:
    done = user.pull("cerebrum-12b:Q4_K_M", "-y")
    path = user.command.home / "data/cerebrum/models/merged" / TWELVE
    stages = [line.split(":")[0] for line in done.err.splitlines()]
    assert (stages, done.err.splitlines()[-1]) == (
        ["download", "merge", "installed cerebrum-12b"],
        f"installed cerebrum-12b:Q4_K_M: {path}",
    )
    assert_copied(stored([path]), stored([user.path(named("Q4_K_M"))]), LAYERS)
    twelve, seven = user.listed()
    assert (twelve["reference"], twelve["path"], twelve["default"]) == ("cerebrum-12b:Q4_K_M", str(path), True)
    assert (twelve["merged_from"], twelve["format"], twelve["error"]) == (["cerebrum-7b:Q4_K_M"], "cerebrum", None)
    assert (seven["reference"], seven["default"]) == ("cerebrum-7b:Q4_K_M", False)
    shown = user.run("show", "cerebrum-12b", "--json").object
    assert (shown["layers"], shown["sha256"]) == (56, hashlib.sha256(path.read_bytes()).hexdigest())
    assert shown["metadata"]["general.name"] == "Cerebrum-1.0-12.25B"
    assert shown["metadata"]["general.base_model.0.repo_url"] == f"https://huggingface.co/{CATALOGUED}"
    assert user.ask("-m", "cerebrum-12b") == user.ask() == user.ask("-m", path)

    user.hub.log.clear()
    before = path.stat()
    assert user.pull("cerebrum-12b:q4_k_m").err == f"installed cerebrum-12b:Q4_K_M: {path}\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    removed = user.run("rm", "-y", "cerebrum-12b:Q4_K_M")
    assert removed.err == ("deleted cerebrum-12b:Q4_K_M, freed 19 MB; the default model is now cerebrum-7b:Q4_K_M\n")
    assert (path.parent.exists(), path.exists()) == (True, False)
    assert [row["reference"] for row in user.listed()] == ["cerebrum-7b:Q4_K_M"]
    assert not user.hub.log.requests()


def test_offline_the_12b_is_merged_of_a_7b_that_is_here(user: HubUser) -> None:
    missing = user.run("pull", "cerebrum-12b:Q4_K_M", "--offline", "-y")
    said = "error: cerebrum-7b:Q4_K_M is not downloaded, and the network is disabled"
    assert (missing.code, missing.err.splitlines()[0]) == (3, said)
    user.pull("cerebrum-7b:Q4_K_M")
    user.hub.log.clear()
    done = user.run("pull", "cerebrum-12b:Q4_K_M", "--offline", "-y", "--name", "mine", "--json")
    assert (done.code, done.object["reference"], done.object["default"]) == (0, "mine", False)
    assert user.run("pull", "--offline", "cerebrum-12b:Q4_K_M").err.startswith("installed mine: ")
    assert user.ask("-m", "mine", "--offline") == user.ask("-m", "cerebrum-12b", "--offline")
    assert not user.hub.log.requests()
    assert user.run("rm", "-y", "mine").err.startswith("deleted mine, ")


def test_a_name_that_is_taken_is_told_before_anything_is_downloaded(user: HubUser) -> None:
    done = user.run("pull", "cerebrum-12b:Q4_K_M", "-y", "--name", "starter")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: the name starter belongs to another model")
    assert not user.hub.log.requests()


def test_a_7b_that_states_no_type_is_merged_once(user: HubUser, tmp_path: Path) -> None:
    data = (tmp_path / "seven.gguf").read_bytes().replace(b"general.file_type", b"general.file_tipo")
    user.hub.repository(CATALOGUED, {named("Q4_K_M"): data})
    user.pull("cerebrum-12b", "-y")
    assert user.pull("cerebrum-12b").err.startswith("installed cerebrum-12b:Q4_K_M: ")


def test_a_dry_run_shows_in_what_the_12b_can_be_had(user: HubUser) -> None:
    (user.command.config / "models.toml").unlink()
    done = user.run("pull", "--dry-run", "cerebrum-12b:q4_k_m")
    assert (done.code, done.err) == (0, "cerebrum pull cerebrum-12b:q4_k_m would download cerebrum-12b:Q4_K_M\n")
    assert done.out.startswith("\ncerebrum-12b at a context of 8192 tokens; this machine has ")
    table = [line.removeprefix("*").split() for line in done.out.splitlines()[3:]]
    assert [*table[0][:2], len(table[1:])] == ["quant", "size", 14]
    assert ["Q4_K_M", "7.44", "GB"] in [row[:3] for row in table]
    assert not user.hub.log.requests()
    assert not (user.command.home / "data").exists()


def test_the_starter_stacked_once_says_what_the_starter_says(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    assert pytestconfig.cache
    owner, command = CommandLine(Path(pytestconfig.cache.mkdir("starter"))), CommandLine(tmp_path)
    pulled = owner.run("pull", "starter", "--quiet")  # once for all runs of the suite on this machine
    assert pulled.code == 0, pulled.err
    starter = Path(owner.run("show", "starter", "--json").object["path"])
    (tmp_path / "once.yaml").write_text(stack((str(starter), 0, 10), (str(starter), 10, 30)))
    done = command.run("merge", "once.yaml", "-o", "out.gguf", "-q")
    assert done.code == 0, done.err
    out = tmp_path / "out.gguf"
    assert stored([out]) == stored([starter])
    asked = ("-n", "40", "--temperature", "0", "--json", "Name three colours of the rainbow.")
    replies = [command.run("ask", "-m", each, *asked).object for each in (starter, out)]
    assert replies[0]["text"] == replies[1]["text"]
    assert [each["completion_tokens"] for each in replies] == [replies[0]["completion_tokens"]] * 2
    assert replies[0]["prompt_tokens"] == replies[1]["prompt_tokens"]
    out.unlink()


MIXED = """
merge_method: linear
models:
- {model: tiny, parameters: {weight: [{filter: self_atn, value: 0.5}, {filter: mlp, value: 0.5}, {value: 1.0}]}}
- {model: other, parameters: {weight: [{filter: down_prj, value: 0.2}, {value: 0.5}]}}
"""


def test_filters_that_match_nothing_are_told_and_the_merge_is_made(home: Home) -> None:
    other = write_quantized(home.path / "other.gguf", shape=SMALL, seed=1)
    (home.path / "mixed.yaml").write_text(MIXED)
    arguments = ["merge", "mixed.yaml", *OUT, "--source", f"tiny={home.model.name}", "--source", f"other={other.name}"]
    dry = home.run(*arguments, "--dry-run", "--json", "-q")
    assert (dry.code, dry.err, dry.object["unmatched_filters"]) == (0, "", ["self_atn", "down_prj"])
    done = home.run(*arguments)
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert (done.code, len(notes)) == (0, 2), done.err
    for each, note in zip(("self_atn", "down_prj"), notes, strict=True):
        assert note.startswith(f"note: the recipe's filter {each} matches no tensor and is ignored")
    assert (
        home.run("merge", "twice.yaml", "--source", "tiny=out.gguf", "--dry-run", "--json").object["unmatched_filters"]
        == []
    )


@pytest.mark.parametrize(
    ("sources", "what", "do"),
    [
        (["tiny=x.gguf"], "tiny=x.gguf: a second model for tiny", "give --source tiny=MODEL once"),
        (["tiny=Tiny-Q4_K_M.gguf"], "tiny=Tiny-Q4_K_M.gguf: a second model for tiny", None),
        (["=Tiny-Q4_K_M.gguf"], "=Tiny-Q4_K_M.gguf: the recipe does not name this model", GIVE),
        (["TINY=Tiny-Q4_K_M.gguf"], "TINY=Tiny-Q4_K_M.gguf: the recipe does not name this model", GIVE),
        (["tiny ="], "tiny =: the recipe does not name this model", GIVE),
    ],
)
def test_a_source_that_says_nothing_new_is_refused(sources: list[str], what: str, do: str | None, home: Home) -> None:
    before = home.files
    done = home.merge(*OUT, *(part for each in sources for part in ("--source", each)))
    do = do or "give --source tiny=MODEL once"
    assert (done.code, done.out, done.err) == (2, "", f"error: --source {what}\n  try: {do}\n")
    assert home.files == before


def test_a_source_without_a_model_is_refused(home: Home) -> None:
    done = home.run("merge", "twice.yaml", *OUT, "--source", "tiny=")
    said = "error: --source tiny=: no model after the =\n  try: give --source tiny=MODEL once\n"
    assert (done.code, done.out, done.err) == (2, "", said)


@pytest.mark.parametrize("more", [["--offline"], ["--dry-run"]])
@pytest.mark.parametrize("method", ["slerp", "passthrough"])
def test_a_published_recipe_is_told_to_need_files_that_are_gguf(more: list[str], method: str, home: Home) -> None:
    names = ("mistralai/Mistral-7B-v0.1", "teknium/OpenHermes-2.5-Mistral-7B")
    mix = f"merge_method: slerp\nbase_model: {names[0]}\nparameters: {{t: 0.5}}\nmodels: [{{model: {names[0]}}}, "
    text = f"{mix}{{model: {names[1]}}}]" if method == "slerp" else stack(*((each, 0, 4) for each in names))
    (home.path / "published.yaml").write_text(text)
    done = home.run("merge", "published.yaml", *OUT, *more)
    error, do = done.err.splitlines()
    assert (done.code, done.out) == (3, "")
    assert names[0] in error
    assert f"--source {names[0]}=MODEL" in do
    given = [part for each in names for part in ("--source", f"{each}={home.model.name}")]
    assert home.run("merge", "published.yaml", *OUT, *given).code == 0


def test_a_recipe_may_come_out_of_a_pipe_and_not_out_of_a_directory(home: Home) -> None:
    os.mkfifo(home.path / "pipe")
    writer = threading.Thread(target=(home.path / "pipe").write_text, args=(TWICE,), daemon=True)
    writer.start()
    arguments = ["--source", f"tiny={home.model.name}", "-o"]
    done = home.run("merge", "pipe", *arguments, "out.gguf")
    writer.join(5)
    assert (done.code, home.files) == (0, ["Tiny-Q4_K_M.gguf", "out.gguf", "twice.yaml"])
    done = home.run("merge", ".", *arguments, "other.gguf")
    assert (done.code, done.err) == (2, "error: .: is a directory\n  try: name a mergekit recipe in YAML\n")


@pytest.mark.parametrize("name", ["out-00002-of-00002.gguf", "out-00001-of-00002.GGUF", "out-00009-of-00002.gguf"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--split-size", "1MB"]])
def test_a_file_that_would_pass_for_a_part_is_refused(name: str, more: list[str], home: Home) -> None:
    done = home.merge("-o", name, *more)
    said = f"error: -o {name}: is the name of one part of a split model\n  try: omit the part number\n"
    assert (done.code, done.out, done.err) == (2, "", said)
    assert (home.rows, name in home.files) == ([], False)


@pytest.mark.parametrize("name", [f"{'x' * 300}.gguf", f"{'x' * 248}.gguf", f"{'ü' * 140}.gguf"])
@pytest.mark.parametrize("more", [[], ["--split-size", "1MB"]])
def test_a_name_that_is_too_long_is_told_in_a_line(name: str, more: list[str], home: Home) -> None:
    done = home.merge("-o", name, "-q", *more)
    error, do = done.err.splitlines()
    assert (done.code in (1, 2), done.out, error[:7], do[:7]) == (True, "", "error: ", "  try: "), done.err
    assert (home.rows, home.files) == ([], ["Tiny-Q4_K_M.gguf", "twice.yaml"])


@pytest.mark.parametrize("sizes", [("1MB", "1.5MB"), (None, "1MB"), ("1MB", None), ("1MB", "1MB")])
def test_what_was_split_is_replaced_by_what_is_split_otherwise(
    sizes: tuple[str | None, str | None], home: Home
) -> None:
    for number, size in enumerate(sizes):
        done = home.made("-y", *(["--split-size", size] if size else []))
        told = [line.split("  ") for line in done.out.splitlines()]
        [row] = home.rows
        assert (row["name"], row["path"], row["error"]) == ("out", str(home.path / told[0][1]), None), number
        assert row["size"] == sum((home.path / name).stat().st_size for _, name in told)
        assert_copied(stored([home.path / name for _, name in told]), stored([home.model]), [0, 1, 2, 3] * 2)
    assert home.prompt("out") == PROMPT


def test_a_model_of_two_names_is_merged_from_once(home: Home) -> None:
    (home.path / "two.yaml").write_text(stack(("tiny", 0, 4), ("again", 0, 4)))
    done = home.run("merge", "two.yaml", *OUT, "--source", "tiny=Tiny-Q4_K_M.gguf", "--source", f"again={home.model}")
    assert done.code == 0, done.err
    assert home.rows[0]["merged_from"] == ["Tiny-Q4_K_M.gguf"]
    assert home.run("show", "out", "--json").object["metadata"]["general.base_model.count"] == 1
    assert home.run("list").out.count("Tiny-Q4_K_M.gguf") == 1
