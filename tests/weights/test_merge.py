"""`cerebrum merge` with small models: its output, its files, and the models it registers."""

import hashlib
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import COMMAND, assert_error
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
    write_weights,
)
from person import Person
from tiny_models import write_quantized

pytestmark = pytest.mark.slow

MODEL = "Tiny-Q4_K_M.gguf"


def digest_line(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_merge_prints_its_digest_in_the_format_of_sha256sum(home: Home) -> None:
    done = home.merge_to_out()
    assert done.out == digest_line(home.out)
    assert done.err == "out is installed: cerebrum ask -m out\n"
    assert_layers_copied([home.out], [home.model], TWO_TIMES)
    assert home.merge("-o", "other.GGUF", "-q").err == ""


def test_merge_json_reports_the_plan_and_the_written_files(home: Home) -> None:
    dry = home.merge("--dry-run", "--json", *OUT)
    assert (dry.code, dry.err, home.files) == (0, "", [MODEL, "twice.yaml"])
    assert not (home.path / "data").exists()
    done = home.merge_to_out("--json", "-q")
    assert done.err == ""
    planned, written = dry.object, done.object
    [file] = written.pop("files")
    assert [{"path": file["path"], "size": file["size"]}] == planned.pop("files")
    assert f"{file['sha256']}  {file['path']}\n" == digest_line(home.out)
    assert (written.pop("reference"), written.pop("free") > 0, planned.pop("free") > 0) == ("out", True, True)
    assert written == planned
    assert written["layers"][5] == {"layer": 5, "sources": [{"model": "tiny", "layer": 1}]}
    assert (written["name"], written["merge_method"]) == ("out", "passthrough")
    assert (written["models"], written["tensors"]) == ({"tiny": str(home.model)}, 75)
    assert written["size"] == home.out.stat().st_size


def test_merge_source_is_a_name_alias_reference_or_path(home: Home) -> None:
    assert home.run("pull", home.model, "--name", "mine").code == 0
    expected = home.merge_to_out().out.split()[0]
    for model in ("mine", "tiny", "Small:q4_k_m", home.model, "./Tiny-Q4_K_M.gguf"):
        done = home.run("merge", "twice.yaml", "--source", f"tiny={model}", *OUT, "-y")
        assert (done.code, done.out) == (0, f"{expected}  out.gguf\n")
    assert [row["merged_from"] for row in home.rows] == [[], ["mine"]]


def test_merge_takes_a_name_for_a_model_and_not_for_the_folder_of_this_name(home: Home) -> None:
    (home.path / "twice.yaml").write_text(stack(("mine", 0, 4)))
    (home.path / "mine").mkdir()
    done = home.run("merge", "twice.yaml", *OUT)
    assert_error(done, 3, "unknown model 'mine'", "to use the folder of this name: --source mine=./mine")
    assert home.run("pull", home.model, "--name", "mine").code == 0
    assert home.run("merge", "twice.yaml", *OUT).code == 0
    assert home.rows[1]["merged_from"] == ["mine"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_merge_terminal_asks_before_replacing_a_file(home: Home) -> None:
    home.out.write_bytes(b"precious")
    refused = "error: out.gguf already exists\n hint: choose another file, or replace it with -y\n"
    assert (home.merge(*OUT).err, home.out.read_bytes()) == (refused, b"precious")
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


def test_merge_result_is_listed_and_shown_like_other_models(home: Home) -> None:
    assert home.run("pull", home.model).code == 0
    home.merge_to_out()
    made = home.rows[1]
    assert (made["name"], made["source"], made["merged_from"]) == ("out", "merge", ["Tiny-Q4_K_M"])
    assert (made["format"], made["quantization"], made["default"]) == ("collective-cognition", "Q4_K_M", False)
    [line] = [line for line in home.run("list").out.splitlines() if " out " in line]
    assert line.endswith("/out.gguf, merged from Tiny-Q4_K_M")
    shown = home.run("show", "out", "--json").object
    assert (shown["merged_from"], shown["layers"], shown["name"]) == (["Tiny-Q4_K_M"], 8, "out")
    assert shown["sha256"] == hashlib.sha256(home.out.read_bytes()).hexdigest()
    metadata = shown["metadata"]
    assert metadata["cerebrum.merge.recipe"] == TWICE
    assert (metadata["general.name"], metadata["general.base_model.0.name"]) == ("out", "tiny quantized")
    assert "merged_from         Tiny-Q4_K_M\n" in home.run("show", "out").out
    done = home.run("rm", "-y", "out")
    assert (done.code, done.err) == (0, "removed out from the list; its file is kept\n")
    assert ([row["name"] for row in home.rows], "out.gguf" in home.files) == (["Tiny-Q4_K_M"], True)


def test_merge_result_has_the_prompt_format_of_its_source(home: Home) -> None:
    home.merge_to_out("--type", "q8_0")
    assert {each.type for each in read_tensors([home.out]).values()} == {"Q8_0", "F32"}
    assert home.rows[0]["quantization"] == "Q8_0"
    reply = home.command.run("ask", "-m", "out", "-n", "4", "--json", "Why?").object
    assert (reply["format"], reply["completion_tokens"]) == ("collective-cognition", 4)
    assert home.prompt("out") == home.prompt(home.model) == PROMPT
    elsewhere = home.path / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copy(home.out, elsewhere / "copy.gguf")
    assert home.run("pull", copy).code == 0
    assert home.prompt("copy") == PROMPT
    assert [row["merged_from"] for row in home.rows] == [["Tiny-Q4_K_M"]] * 2
    plain = write_quantized(home.path / "plain.gguf", shape=FOUR_LAYERS)  # not in the catalog: its own template
    assert home.run("merge", "twice.yaml", "--source", f"tiny={plain}", "-o", "third.gguf").code == 0
    assert (home.prompt("third"), home.rows[2]["format"]) == (home.prompt(plain), "embedded")


def test_merge_reads_a_recipe_from_a_pipe_and_its_name(home: Home) -> None:
    os.mkfifo(home.path / "pipe")
    recipe = f"name: Tower of Two\n{TWICE}"
    writer = threading.Thread(target=(home.path / "pipe").write_text, args=(recipe,), daemon=True)
    writer.start()
    done = home.run("merge", "pipe", "--source", f"tiny={home.model.name}", *OUT)
    writer.join(5)
    assert (done.code, home.files) == (0, [MODEL, "out.gguf", "twice.yaml"])
    assert metadata_bytes(home.out)["general.name"].endswith(b"Tower of Two")


def test_merge_replaces_no_source_by_a_link(home: Home) -> None:
    (home.path / "link.gguf").symlink_to(MODEL)
    before = home.files
    assert_error(home.merge("-o", "link.gguf"), 2, "link.gguf is a source of this merge", "choose another output file")
    assert (home.files, home.rows) == (before, [])


def test_merge_refuses_a_model_as_a_recipe_or_with_one_tensor_per_expert(home: Home) -> None:
    assert_error(home.run("merge", MODEL, *OUT), 2, f"{MODEL} is larger than 1 MB")
    write_weights(home.path / "old.gguf", {"blk.0.ffn_gate.0.weight": np.ones((32, 32))})
    done = home.run("merge", "twice.yaml", *OUT, "--source", "tiny=old.gguf")
    assert_error(done, 2, "made before April 2024 with one tensor per expert")


def test_merge_reports_too_little_disk_space_before_writing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, free=60_000_000))
    done = home.merge(*OUT)
    problem = f"{home.path.resolve()}: not enough disk space: needs 67 MB; 60 MB is free"
    assert (done.code, done.err) == (1, f"error: {problem}\n hint: free 7 MB, or write elsewhere\n")


DRY_RUN = """\
layers  model        source layers
0-3     Tiny-Q4_K_M  0-3
4-7     Tiny-Q4_K_M  0-3

parameters  4,601,600
tensors     75 (Q4_K 41, F32 17, Q6_K 17)
size        3 MB (2935552 bytes), 100% copied unchanged
KV cache    2,048 bytes per token
memory      548 MB to run with a context of 2048 tokens
disk        3 MB needed, 12.35 GB free
"""


def test_merge_dry_run_shows_its_layers_and_resources(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345_678_901))
    done = home.merge("--dry-run", *OUT)
    assert (done.code, done.err, done.out) == (0, "", DRY_RUN)
