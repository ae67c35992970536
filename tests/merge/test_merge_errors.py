"""`cerebrum merge` refuses what it cannot merge with one line for the problem and one for the fix."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from merges import OUT, TWICE, Home, stack, write_weights
from tiny_models import write_chatml

pytestmark = pytest.mark.slow


MODEL = "Tiny-Q4_K_M.gguf"
SOURCE = ("--source", f"tiny={MODEL}")
USE = "use NAME=MODEL, where NAME is tiny"
ONCE = "give --source tiny=MODEL once"


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        ([], "no output file given (-o)", "name a file: -o OUT.gguf"),
        (["-o", "out.bin"], "-o out.bin: not a .gguf file name", "use -o out.bin.gguf"),
        (["-o", "no/out.gguf"], "-o no/out.gguf: directory no does not exist", "create it first, or write elsewhere"),
        (["-o", "a.gguf"], "-o a.gguf: is a directory", "name a file"),
        (["-o", MODEL, *SOURCE], f"{MODEL} is a source of this merge", "choose another output file"),
        (["-o", "link.gguf", *SOURCE], "link.gguf is a source of this merge", "choose another output file"),
        ([*OUT, "--name", "starter"], "the name starter belongs to another model", "choose another with --name"),
        ([*OUT, "--name", "SMALL"], "the name SMALL belongs to another model", "choose another with --name"),
        ([*OUT, "--source", "tidy=b"], "--source tidy=b: the recipe does not name this model", USE),
        ([*OUT, "--source", "tiny"], "--source tiny: the recipe does not name this model", USE),
        ([*OUT, "--source", "=b"], "--source =b: the recipe does not name this model", USE),
        ([*OUT, "--source", "TINY=b"], "--source TINY=b: the recipe does not name this model", USE),
        ([*OUT, "--source", "tiny ="], "--source tiny =: the recipe does not name this model", USE),
        ([*OUT, "--source", "tiny="], "--source tiny=: no model after the =", ONCE),
        ([*OUT, *SOURCE, "--source", "tiny=x.gguf"], "--source tiny=x.gguf: a second model for tiny", ONCE),
        ([*OUT, *SOURCE, *SOURCE], "--source tiny=Tiny-Q4_K_M.gguf: a second model for tiny", ONCE),
    ],
)
def test_merge_refuses_invalid_options(arguments: list[str], problem: str, hint: str, home: Home) -> None:
    (home.path / "a.gguf").mkdir()
    (home.path / "link.gguf").symlink_to("Tiny-Q4_K_M.gguf")
    before = home.files
    done = home.run("merge", "twice.yaml", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {problem}\n hint: {hint}\n")
    assert (home.files, home.rows) == (before, [])


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("none.yaml", "none.yaml: no such recipe"),
        ("starter", "starter: no such recipe"),
        ("a", "a: cannot be read: Is a directory"),
        ("Tiny-Q4_K_M.gguf", "Tiny-Q4_K_M.gguf: larger than 1048576 bytes"),
        ("short.gguf", "short.gguf: not UTF-8 text"),
        ("broken.yaml", "broken.yaml: slices[0].sources[0].layer_range: not a range of layers"),
    ],
)
def test_merge_reports_what_is_not_a_recipe(recipe: str, problem: str, home: Home) -> None:
    (home.path / "a").mkdir()
    (home.path / "short.gguf").write_bytes(b"GGUF\xff")
    (home.path / "broken.yaml").write_text(TWICE.replace("[0, 4]", "[4, 0]"))
    done = home.run("merge", recipe, *OUT)
    error, hint = done.err.splitlines()
    assert (done.code, done.out, error) == (2, "", f"error: {problem}")
    assert hint.startswith(" hint: ")


def test_merge_reports_missing_models_with_a_hint(home: Home) -> None:
    (home.path / "published.yaml").write_text(stack(("/home/him/Tiny", 0, 4)))
    (home.path / "spaced.yaml").write_text(stack(("my model", 0, 4)))
    for arguments, error, hint in (
        (
            ["published.yaml"],
            "the recipe's model /home/him/Tiny: /home/him/Tiny: file not found",
            "name the model to use: --source /home/him/Tiny=MODEL",
        ),
        (["published.yaml", "--source", "/home/him/Tiny=./no.gguf"], "no.gguf: file not found", "check the path"),
        (
            ["spaced.yaml"],
            "the recipe's model my model: unknown model 'my model'",
            "name the model to use: --source my model=MODEL",
        ),
        (["cerebrum-12b", "--offline"], "cerebrum-7b is not downloaded", "cerebrum pull cerebrum-7b"),
        (["twice.yaml", "--dry-run"], "tiny is not downloaded", "cerebrum pull tiny"),
    ):
        done = home.run("merge", *arguments, *OUT)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith(f"error: {error}\n hint: {hint}")
    done = home.run("merge", "published.yaml", "--source", "/home/him/Tiny=Tiny-Q4_K_M.gguf", *OUT)
    assert (done.code, home.rows[0]["merged_from"]) == (0, ["Tiny-Q4_K_M.gguf"])


@pytest.mark.parametrize("more", [["--offline"], ["--dry-run"]])
@pytest.mark.parametrize("method", ["slerp", "passthrough"])
def test_merge_published_recipe_needs_source_options(more: list[str], method: str, home: Home) -> None:
    names = ("mistralai/Mistral-7B-v0.1", "teknium/OpenHermes-2.5-Mistral-7B")
    mix = f"merge_method: slerp\nbase_model: {names[0]}\nparameters: {{t: 0.5}}\nmodels: [{{model: {names[0]}}}, "
    text = f"{mix}{{model: {names[1]}}}]" if method == "slerp" else stack(*((each, 0, 4) for each in names))
    (home.path / "published.yaml").write_text(text)
    done = home.run("merge", "published.yaml", *OUT, *more)
    error, hint = done.err.splitlines()
    assert (done.code, done.out) == (3, "")
    assert names[0] in error
    assert f"--source {names[0]}=MODEL" in hint
    given = [part for each in names for part in ("--source", f"{each}={home.model.name}")]
    assert home.run("merge", "published.yaml", *OUT, *given).code == 0


def test_merge_reports_too_little_disk_space_before_writing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=60_000_000))
    done = home.merge(*OUT)
    problem = f"{home.path.resolve()}: not enough disk space: 60 MB free, 67 MB needed"
    assert (done.code, done.err) == (1, f"error: {problem}\n hint: free 7 MB, or write elsewhere\n")
    (home.path / "out.gguf.part").write_bytes(bytes(7_000_000))  # will be overwritten
    home.merge_to_out()


def test_merge_reports_what_differs_between_models(home: Home) -> None:
    other = write_chatml(home.path / "other.gguf")
    (home.path / "both.yaml").write_text(stack(("tiny", 0, 4), ("other", 0, 2)))
    done = home.run("merge", "both.yaml", *OUT, "--source", "tiny=Tiny-Q4_K_M.gguf", "--source", f"other={other}")
    problem = "other.gguf differs from Tiny-Q4_K_M.gguf in llama.attention.head_count: 4 and 8"
    hint = "merge models with the same architecture, shape and vocabulary"
    assert (done.code, done.out, done.err) == (1, "", f"error: {problem}\n hint: {hint}\n")


def test_merge_refuses_a_mixtral_with_one_tensor_per_expert(home: Home) -> None:
    write_weights(home.path / "old.gguf", {"blk.0.ffn_gate.0.weight": np.ones((32, 32))})
    done = home.run("merge", "twice.yaml", *OUT, "--source", "tiny=old.gguf")
    assert (done.code, done.err.count("\n")) == (1, 2)
    assert "made before April 2024 with one tensor per expert" in done.err


@pytest.mark.parametrize(
    "name", [f"out-0000{part}" for part in ("2-of-00002.gguf", "1-of-00002.gguf", "1-of-00002.GGUF", "9-of-00002.gguf")]
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_merge_refuses_the_name_of_a_part_of_a_split_model(name: str, more: list[str], home: Home) -> None:
    done = home.merge("-o", name, *more)
    error = f"error: -o {name}: is the name of one part of a split model\n hint: omit the part number\n"
    assert (done.code, done.out, done.err) == (2, "", error)
    assert (home.rows, name in home.files) == ([], False)


@pytest.mark.parametrize("name", [f"{'x' * 300}.gguf", f"{'x' * 248}.gguf", f"{'ü' * 140}.gguf"])
def test_merge_reports_a_file_name_that_is_too_long(name: str, home: Home) -> None:
    done = home.merge("-o", name, "-q")
    error, hint = done.err.splitlines()
    assert (done.code in (1, 2), done.out, error[:7], hint[:7]) == (True, "", "error: ", " hint: "), done.err
    assert (home.rows, home.files) == ([], ["Tiny-Q4_K_M.gguf", "twice.yaml"])
