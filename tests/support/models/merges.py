"""Merges and conversions of small real models, read and compared; and `cerebrum merge` in a home directory."""

import shutil
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from command_line import CommandLine, Finished
from gguf_files import write_file
from numpy.typing import NDArray
from scripted_command import app_for
from tiny_models import Shape

from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.reference import parts_of
from cerebrum_cli.main import run
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.execute import execute, require_supported_types
from cerebrum_cli.weights.merge_plan import plan_merge as planned
from cerebrum_cli.weights.plan import Plan, plan_conversion
from cerebrum_cli.weights.recipe import parse_recipe
from cerebrum_cli.weights.table import read_table

Weights = NDArray[np.float64]
Models = Mapping[str, Sequence[Path]]

LAYERS_12B = [start + number for start in range(0, 28, 4) for number in range(8)]  # their numbers in the 7B
SIX_LAYERS = Shape(layers=6, width=64)
FOUR_LAYERS = Shape(layers=4, width=256, heads=8, kv_heads=2, ffn=512)  # 1.4 MB in Q4_K_M
TWO_TIMES = [0, 1, 2, 3] * 2


class StoredTensor(NamedTuple):
    type: str
    shape: tuple[int, ...]
    data: bytes


def stack(*slices: tuple[str, int, int]) -> str:
    """Recipe that stacks layers; each slice is a model, its first layer, and the layer after its last."""
    rows = [f"- sources: [{{model: {model}, layer_range: [{start}, {end}]}}]" for model, start, end in slices]
    return "\n".join(["merge_method: passthrough", "slices:", *rows])


TWICE = stack(("tiny", 0, 4), ("tiny", 0, 4))  # 2.7 MB


def plan_merge(recipe: str, models: Models) -> Plan:
    parsed = parse_recipe(recipe, "recipe.yaml")
    tables = {name: read_table(name, paths) for name, paths in models.items()}
    plan, _ = planned(parsed, tables, None, "merged", {})
    require_supported_types(plan)
    return plan


def write_merge(recipe: str, models: Models, out: Path) -> str:
    """Write a merge with two threads, and return its digest."""
    return execute(plan_merge(recipe, models), out, 2, lambda done, total: None)


def convert_checkpoint(folder: Path, out: Path, type: str) -> Path:
    """Convert with two threads."""
    plan = plan_conversion(read_checkpoint(folder, "tiny checkpoint"), type, {})
    require_supported_types(plan)
    execute(plan, out, 2, lambda done, total: None)
    return out


def read_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    data = {path: path.read_bytes() for path in paths}
    return {
        name: StoredTensor(each.kind.name, each.shape, data[each.path][each.offset : each.offset + each.size])
        for name, each in read_table("model", paths).tensors.items()
    }


def write_weights(path: Path, tensors: Mapping[str, Weights], architecture: str = "llama", layers: int = 1) -> Path:
    """Write a model of these weights in F32, without a vocabulary."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32(f"{architecture}.block_count", layers)
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    write_file(writer)
    return path


def metadata_bytes(path: Path) -> dict[str, bytes]:
    fields = gguf.GGUFReader(path).fields.items()
    return {name: b"".join(part.tobytes() for part in field.parts) for name, field in fields}


def part_paths(first: Path) -> list[Path]:
    return [first.with_name(name) for name in parts_of(first.name)]


def assert_layers_copied(merged: Sequence[Path], source: Sequence[Path], layers: Sequence[int]) -> None:
    """Check that a merge consists of its source's tensors, with these source layers, byte for byte."""
    made, original = read_tensors(merged), read_tensors(source)
    outer = [name for name in original if not name.startswith("blk.")]
    suffixes = [name.removeprefix("blk.0.") for name in original if name.startswith("blk.0.")]
    origins = {f"blk.{new}.{suffix}": f"blk.{old}.{suffix}" for new, old in enumerate(layers) for suffix in suffixes}
    origins |= {name: name for name in outer}
    assert made.keys() == origins.keys()
    assert [name for name in made if made[name] != original[origins[name]]] == []


CATALOGUE = """
[models.tiny]
title = "Tiny-1.0"
aliases = ["small"]
repo_id = "someone/Tiny-GGUF"
file = "Tiny-{quant}.gguf"
format = "collective-cognition"
"""
PROMPT = "USER: Why?\nASSISTANT:"  # in the catalog's format
OUT = ("-o", "out.gguf")


class Home:
    """A user's home directory with a model file of the catalog and a recipe; the working directory of the test."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.command = CommandLine(path)
        (self.command.config / "models.toml").write_text(CATALOGUE)
        self.model = Path(shutil.copy(model, path / "Tiny-Q4_K_M.gguf"))
        self.out = path / "out.gguf"
        (path / "twice.yaml").write_text(TWICE)

    def run(self, *arguments: str | Path) -> Finished:
        """Run one command in this process, with an empty Hugging Face cache and no model to generate with."""
        out, err = StringIO(), StringIO()
        app = app_for({}, self.path, Streams(out, err, None, False, False, False))
        app.library.cache = Cache(self.path / "hub")
        code = run([str(argument) for argument in arguments], app)
        return Finished(code, out.getvalue(), err.getvalue())

    def merge(self, *arguments: str | Path) -> Finished:
        return self.run("merge", "twice.yaml", "--source", f"tiny={self.model.name}", *arguments)

    def merge_to_out(self, *arguments: str | Path) -> Finished:
        done = self.merge(*OUT, *arguments)
        assert done.code == 0, done.err
        return done

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.run("list", "--json").object
        return rows

    def prompt(self, model: str | Path) -> str:
        done = self.command.run("ask", "--dry-run", "-q", "-m", model, "Why?")
        assert done.code == 0, done.err
        return done.out
