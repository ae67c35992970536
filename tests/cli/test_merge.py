"""`cerebrum merge` with small models: its output, its files, and the models it registers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import COMMAND
from merges import (
    FOUR_LAYERS,
    OUT,
    PROMPT,
    TWICE,
    TWO_TIMES,
    Home,
    assert_layers_copied,
    metadata_bytes,
    read_tensors,
    stack,
)
from person import Person
from tiny_models import write_quantized

from cerebrum_cli.core.files import fsync_directory

pytestmark = pytest.mark.slow


def digests(paths: Sequence[Path]) -> str:
    """Output of sha256sum for these files."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)


def test_merge_prints_its_digest_in_the_format_of_sha256sum(home: Home) -> None:
    done = home.merge_to_out()
    assert done.out == digests([home.out])
    *progress, installed = done.err.splitlines()
    assert installed == "out is installed: cerebrum ask -m out"
    assert all(line.startswith("merge: ") for line in progress)
    assert re.match(r"merge: (.+) of \1(,|$)", progress[-1])
    assert_layers_copied([home.out], [home.model], TWO_TIMES)
    assert home.merge("-o", "other.GGUF", "-q").err == ""


def test_merge_json_reports_the_plan_and_the_written_files(home: Home) -> None:
    dry = home.merge("--dry-run", "--json", *OUT)
    assert (dry.code, dry.err, home.files) == (0, "", ["Tiny-Q4_K_M.gguf", "twice.yaml"])
    assert not (home.path / "data").exists()
    done = home.merge_to_out("--json", "-q")
    assert done.err == ""
    planned, written = dry.object, done.object
    [file] = written.pop("files")
    assert [{"path": file["path"], "size": file["size"]}] == planned.pop("files")
    assert f"{file['sha256']}  {file['path']}\n" == digests([home.out])
    assert (written.pop("reference"), written.pop("free") > 0, planned.pop("free") > 0) == ("out", True, True)
    assert written == planned
    assert written["layers"][5] == {"layer": 5, "sources": [{"model": "tiny", "layer": 1}]}
    assert (written["name"], written["merge_method"]) == ("out", "passthrough")
    assert (written["models"], written["tensors"]) == ({"tiny": str(home.path / "Tiny-Q4_K_M.gguf")}, 75)
    assert written["size"] == home.out.stat().st_size


def test_merge_source_is_a_name_alias_reference_or_path(home: Home) -> None:
    assert home.run("pull", home.model, "--name", "mine").code == 0
    expected = home.merge_to_out().out.split()[0]
    for model in ("mine", "tiny", "Small:q4_k_m", home.model, "./Tiny-Q4_K_M.gguf"):
        done = home.run("merge", "twice.yaml", "--source", f"tiny={model}", *OUT, "-y")
        assert (done.code, done.out) == (0, f"{expected}  out.gguf\n")
    assert [row["merged_from"] for row in home.rows] == [[], ["mine"]]


def test_merge_replaces_an_existing_file_only_with_yes(home: Home) -> None:
    home.out.write_bytes(b"precious")
    done = home.merge(*OUT)
    refused = "error: out.gguf already exists\n hint: choose another file, or replace it with -y\n"
    assert (done.code, done.out, done.err, home.out.read_bytes()) == (2, "", refused, b"precious")
    assert home.merge(*OUT, "-y").out == digests([home.out])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_merge_terminal_asks_before_replacing_a_file(home: Home) -> None:
    home.out.write_bytes(b"precious")
    arguments = [COMMAND, "merge", "twice.yaml", "--source", "tiny=Tiny-Q4_K_M.gguf", *OUT]
    for answer, code in (("\r", 2), ("y\r", 0)):
        person = Person(arguments, home.command.environment({"TERM": "xterm"}), home.path)
        person.wait_for("out.gguf already exists. Replace it? [y/N]")
        assert home.out.read_bytes() == b"precious"
        person.type(answer)
        assert person.end() == code
    assert home.rows[0]["size"] == home.out.stat().st_size


def test_merge_reuses_the_name_of_a_replaced_or_missing_file(home: Home) -> None:
    home.merge_to_out("--name", "tower")
    done = home.merge("-o", "other.gguf", "--name", "Tower")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: the name Tower belongs to another model")
    home.merge_to_out("-y", "--name", "tower")
    home.out.unlink()
    assert home.merge("-o", "other.gguf", "--name", "tower").code == 0
    assert [(row["name"], row["path"]) for row in home.rows] == [("tower", str(home.path / "other.gguf"))]


def test_merge_type_converts_all_matrices(home: Home) -> None:
    home.merge_to_out("--type", "q8_0")
    types = {name.split(".")[-2]: each.type for name, each in read_tensors([home.out]).items()}
    assert set(types.values()) == {"Q8_0", "F32"}
    assert {name for name, kind in types.items() if kind == "F32"} == {"attn_norm", "ffn_norm", "output_norm"}
    assert home.rows[0]["quantization"] == "Q8_0"
    done = home.command.run("ask", "-m", "out", "-n", "4", "--json", "Why?")
    assert (done.code, done.object["completion_tokens"]) == (0, 4), done.err


def test_merge_interrupt_after_renaming_registers_the_model(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt_and_sync(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fsync_directory(folder)

    monkeypatch.setattr("cerebrum_cli.merge.execute.fsync_directory", interrupt_and_sync)
    done = home.merge(*OUT)
    exists = "out.gguf" in home.files
    assert ([row["name"] for row in home.rows], "nothing was written" in done.err) == (["out"] * exists, not exists)


def test_merge_result_is_listed_and_shown_like_other_models(home: Home) -> None:
    assert home.run("pull", home.model).code == 0
    home.merge_to_out()
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
    assert shown["sha256"] == hashlib.sha256(home.out.read_bytes()).hexdigest()
    metadata = shown["metadata"]
    assert metadata["cerebrum.merge.recipe"] == TWICE
    assert (metadata["general.name"], metadata["general.base_model.0.name"]) == ("out", "tiny quantized")
    assert "merged_from         Tiny-Q4_K_M\n" in home.run("show", "out").out


def test_merge_result_has_the_prompt_format_of_its_source(home: Home) -> None:
    home.merge_to_out()
    reply = home.command.run("ask", "-m", "out", "-n", "4", "--json", "Why?").object
    assert (reply["format"], reply["completion_tokens"]) == ("collective-cognition", 4)
    assert home.prompt("out") == home.prompt(home.model) == PROMPT
    elsewhere = home.path / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copy(home.out, elsewhere / "copy.gguf")
    assert home.run("pull", copy).code == 0
    assert home.prompt("copy") == PROMPT
    assert [row["merged_from"] for row in home.rows] == [["Tiny-Q4_K_M.gguf"]] * 2
    plain = write_quantized(home.path / "plain.gguf", shape=FOUR_LAYERS)  # not in the catalog: its own template
    assert home.run("merge", "twice.yaml", "--source", f"tiny={plain}", "-o", "third.gguf").code == 0
    assert (home.prompt("third"), home.rows[2]["format"]) == (home.prompt(plain), "embedded")


def test_merge_result_keeps_its_file_when_removed(home: Home) -> None:
    home.merge_to_out()
    done = home.run("rm", "-y", "out")
    assert (done.code, done.err) == (0, f"removed out from the list; kept {home.path / 'out.gguf'}\n")
    assert (home.rows, "out.gguf" in home.files) == ([], True)


def test_merge_result_takes_the_name_in_the_recipe(home: Home) -> None:
    (home.path / "named.yaml").write_text(f"name: Tower of Two\n{TWICE}")
    assert home.run("merge", "named.yaml", "--source", f"tiny={home.model}", *OUT).code == 0
    assert metadata_bytes(home.out)["general.name"].endswith(b"Tower of Two")


def test_merge_reads_a_recipe_from_a_pipe(home: Home) -> None:
    os.mkfifo(home.path / "pipe")
    writer = threading.Thread(target=(home.path / "pipe").write_text, args=(TWICE,), daemon=True)
    writer.start()
    done = home.run("merge", "pipe", "--source", f"tiny={home.model.name}", *OUT)
    writer.join(5)
    assert (done.code, home.files) == (0, ["Tiny-Q4_K_M.gguf", "out.gguf", "twice.yaml"])


def test_merge_lists_a_source_with_two_names_once(home: Home) -> None:
    (home.path / "two.yaml").write_text(stack(("tiny", 0, 4), ("again", 0, 4)))
    done = home.run("merge", "two.yaml", *OUT, "--source", "tiny=Tiny-Q4_K_M.gguf", "--source", f"again={home.model}")
    assert done.code == 0, done.err
    assert home.rows[0]["merged_from"] == ["Tiny-Q4_K_M.gguf"]
    assert home.run("show", "out", "--json").object["metadata"]["general.base_model.count"] == 1
    assert home.run("list").out.count("Tiny-Q4_K_M.gguf") == 1


MIXED = """
merge_method: linear
models:
- {model: tiny, parameters: {weight: [{filter: self_atn, value: 0.5}, {filter: mlp, value: 0.5}, {value: 1.0}]}}
- {model: other, parameters: {weight: [{filter: down_prj, value: 0.2}, {value: 0.5}]}}
"""


def test_merge_reports_filters_that_match_no_tensor(home: Home) -> None:
    other = write_quantized(home.path / "other.gguf", shape=FOUR_LAYERS, seed=1)
    (home.path / "mixed.yaml").write_text(MIXED)
    arguments = ["merge", "mixed.yaml", *OUT, "--source", f"tiny={home.model.name}", "--source", f"other={other.name}"]
    dry = home.run(*arguments, "--dry-run", "--json", "-q")
    assert (dry.code, dry.err, dry.object["unmatched_filters"]) == (0, "", ["self_atn", "down_prj"])
    done = home.run(*arguments)
    notes = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert (done.code, len(notes)) == (0, 2), done.err
    for each, note in zip(("self_atn", "down_prj"), notes, strict=True):
        assert note.startswith(f"note: the recipe's filter {each} matches no tensor and is ignored")
    assert home.merge("--dry-run", "--json").object["unmatched_filters"] == []


def test_merge_reports_ignored_keys_of_a_recipe(home: Home) -> None:
    (home.path / "published.yaml").write_text(f"random_seed: 0\n{TWICE}")
    arguments = ["merge", "published.yaml", "--dry-run", "--json", "--source", f"tiny={home.model.name}"]
    done = home.run(*arguments)
    assert (done.code, done.object["ignored_keys"]) == (0, ["random_seed"])
    assert done.err.splitlines()[0] == "note: the recipe's key random_seed is unknown and ignored"
    assert home.run(*arguments, "-q").err == ""


def test_merge_with_a_broken_pipe_is_registered(home: Home) -> None:
    process = home.command.start("merge", "twice.yaml", "--source", f"tiny={home.model.name}", *OUT)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() is not None
    process.stderr.close()
    assert process.wait(60) == 0
    assert [row["name"] for row in home.rows] == ["out"]


def test_merge_that_cannot_be_registered_keeps_its_file(home: Home) -> None:
    lock = home.path / "data" / "cerebrum" / "models" / "registry.lock"
    lock.mkdir(parents=True)
    done = home.merge(*OUT)
    assert (done.code, done.out) == (1, "")
    *_, problem, hint = done.err.splitlines()
    assert problem == f"error: out.gguf is complete, but not registered: {lock}: Is a directory"
    assert hint == " hint: check its permissions, then run cerebrum pull out.gguf --name out"
    lock.rmdir()
    assert home.run("pull", "out.gguf", "--name", "out").code == 0
    assert [row["name"] for row in home.rows] == ["out"]
