"""Compare conversions with those of llama.cpp's converter and llama-quantize, and a merge with mergekit's.

Usage: python benchmarks/conversion.py --llama-cpp DIR --python FILE [--only NAME...] [--dry-run]

DIR is the source of llama.cpp, of the version that llama-cpp-python contains. FILE is a Python with torch, transformers
and mergekit. The models are those of tests/data/checkpoints, eight times as wide, so that most rows consist of blocks
of 256 weights; the merge is the 12.25B's recipe with a narrow model of 32 layers. Names, types, shapes and bytes of
tensors must be identical, but for the last bits of RoPE factors, which are computed. Tied heads are not compared:
llama.cpp's converter copies those that a checkpoint contains.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader, LlamaFileType
from harness import ROOT, SCRIPT, Row, argument_parser, isolated_environment, record, run
from quantized import quantize

from cerebrum_cli.library.catalogue_file import RECIPES

sys.path.insert(0, str(ROOT / "tests" / "support"))
from checkpoint_models import FIXTURES, CheckpointModel, read_model, write_checkpoint
from conversions import convert_checkpoint

FACTOR, DEEP_FACTOR = 8, 4
FLOATS = ("F32", "F16", "BF16")
QUANTIZED = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")
SCALED_KEYS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim", "query_pre_attn_scalar")
# Their first dimension is the size of the vocabulary or the number of experts.
KEPT_ROWS = ("embed_tokens.weight", "lm_head.weight", ".gate.weight")
COMPUTED = "rope_freqs.weight"
COPIED_HEADS = ("llama-head-saved",)
LAYERS, EXPERTS = 32, 8  # of the original models
RECIPE = "cerebrum-12b"
MERGE_ROW = "12.25B's recipe with safetensors: tensors as mergekit and llama.cpp's converter write them"


class Contents(NamedTuple):
    """What a file contains, apart from the vocabulary and what describes the file itself."""

    hyperparameters: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]


class Converter(NamedTuple):
    """llama.cpp's converter: its source, and a Python that has its requirements."""

    source: Path
    python: Path

    def convert(self, paths: Mapping[Path, Path], outtype: str) -> None:
        """Convert folders to files."""
        script = ROOT / "benchmarks" / "reference_conversion.py"
        arguments = [str(path) for pair in paths.items() for path in pair]
        subprocess.run([self.python, script, self.source, outtype, *arguments], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Compare, and record the rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="source of llama.cpp")
    parser.add_argument("--python", type=Path, metavar="FILE", help="a Python with torch and transformers")
    names = [*sorted(path.stem for path in FIXTURES.glob("*.json") if path.stem not in COPIED_HEADS), *DEEP]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    if not (options.llama_cpp and options.python):
        print("skipped: conversions are compared with llama.cpp's converter, --llama-cpp DIR --python FILE")
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ.update(isolated_environment(directory))
        for model in options.only:
            write_checkpoint(directory / model, DEEP[model]() if model in DEEP else widened(read_model(model), FACTOR))
        converter = Converter(options.llama_cpp.resolve(), options.python.absolute())
        rows = list(comparison_rows(options.only, directory, converter))
        if options.only == names:
            rows.append(merge_row(directory, converter))
    record(rows, options.dry_run or options.only != names)


def widened(model: CheckpointModel, factor: int) -> CheckpointModel:
    """The same model with larger matrices."""
    config = dict(model.config)
    for key in SCALED_KEYS:
        if config.get(key):
            config[key] *= factor
    shapes = {}
    for name, shape in model.shapes.items():
        rows, *columns = shape
        shapes[name] = [rows if name.endswith(KEPT_ROWS) else rows * factor, *(size * factor for size in columns)]
    return replace(model, config=config, shapes=shapes)


def with_layers(model: CheckpointModel, layers: int, **config: int) -> CheckpointModel:
    """A model with another number of layers, which have the shapes of the first, and this in its configuration."""
    shapes = {name: shape for name, shape in model.shapes.items() if ".layers." not in name}
    for name, shape in model.shapes.items():
        if ".layers.0." in name:
            shapes |= {name.replace(".layers.0.", f".layers.{layer}."): shape for layer in range(layers)}
    return replace(model, config={**model.config, "num_hidden_layers": layers, **config}, shapes=shapes)


def deep_model(keys: int) -> CheckpointModel:
    """A Mistral with as many layers as the 7B, and this number of heads for keys and values."""
    model = with_layers(read_model("mistral"), LAYERS, num_key_value_heads=keys)
    shapes = dict(model.shapes)
    for name in shapes:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            shapes[name] = (keys * model.config["head_dim"], model.config["hidden_size"])
    return widened(replace(model, shapes=shapes), DEEP_FACTOR)


def many_experts() -> CheckpointModel:
    """A Mixtral with eight experts, as the original."""
    model = read_model("mixtral")
    shapes = dict(model.shapes)
    for name, shape in model.shapes.items():
        for number in range(4, EXPERTS):
            shapes[name.replace(".experts.0.", f".experts.{number}.")] = shape
        if name.endswith(".gate.weight"):
            shapes[name] = (EXPERTS, *shape[1:])
    deep = with_layers(replace(model, shapes=shapes), LAYERS, num_local_experts=EXPERTS)
    return widened(deep, DEEP_FACTOR)


# Mixtures of types depend on the number of layers, of experts, and of query heads for each head of keys.
DEEP: Mapping[str, Callable[[], CheckpointModel]] = {
    "deep": partial(deep_model, 2),
    "deep-grouped": partial(deep_model, 1),
    "deep-experts": many_experts,
}


def comparison_rows(models: Sequence[str], directory: Path, converter: Converter) -> Iterator[Row]:
    """Yield a row for each type: the number of identical tensors of all models. Other hyperparameters are printed."""
    for outtype in FLOATS:
        converter.convert({directory / model: reference(directory, model, outtype) for model in models}, outtype)
    for outtype in QUANTIZED:
        for model in models:
            file_type = int(LlamaFileType[f"MOSTLY_{outtype}"])
            quantize(reference(directory, model, "F32"), reference(directory, model, outtype), file_type)
    for outtype in (*FLOATS, *QUANTIZED):
        tensors: list[bool] = []
        for model in models:
            ours = read_contents(convert_checkpoint(directory / model, directory / "ours.gguf", outtype))
            theirs = read_contents(reference(directory, model, outtype))
            tensors += compared(f"{model} in {outtype}", ours.tensors, theirs.tensors)
            if outtype == "F32":
                stated = {key: ours.hyperparameters.get(key) for key in theirs.hyperparameters}
                compared(model, stated, theirs.hyperparameters)
        yield identity_row(f"checkpoints to {outtype}: tensors as llama.cpp writes them", tensors)


def reference(directory: Path, model: str, outtype: str) -> Path:
    """The file that llama.cpp writes."""
    return directory / f"{model}.{outtype}.reference.gguf"


def read_contents(path: Path) -> Contents:
    """Read a file."""
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    fields = reader.fields.items()
    return Contents({key: field.contents() for key, field in fields if key.startswith(f"{architecture}.")}, tensors)


def merge_row(directory: Path, converter: Converter) -> Row:
    """Stack the layers of a checkpoint here and with mergekit."""
    model = write_checkpoint(directory / "stacked", with_layers(read_model("mistral"), LAYERS), shards=3)
    theirs, ours = directory / "mergekit", directory / "merged.gguf"
    recipe = directory / "recipe.yaml"
    recipe.write_text((RECIPES / f"{RECIPE}.yaml").read_text().replace("model: cerebrum-7b", f"model: {model}"))
    mergekit = [str(converter.python), "-m", "mergekit.scripts.run_yaml", str(recipe), str(theirs)]
    subprocess.run([*mergekit, "--no-copy-tokenizer", "--quiet"], check=True, stderr=subprocess.DEVNULL)
    converter.convert({theirs: reference(directory, "mergekit", "BF16")}, "BF16")
    run([SCRIPT, "merge", RECIPE, "--source", f"cerebrum-7b={model}", "-o", str(ours), "-q", "-y"])
    expected = read_contents(reference(directory, "mergekit", "BF16"))
    return identity_row(MERGE_ROW, compared("merge", read_contents(ours).tensors, expected.tensors))


def compared(title: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[bool]:
    """Whether each item of either is the same in both; differences are printed."""
    results = []
    for name in sorted({*ours, *theirs}):
        value, expected = ours.get(name), theirs.get(name)
        is_same = value == expected or (name == COMPUTED and is_close(value, expected))
        if not is_same:
            print(f"{title}: {name}: {shown(value)}, llama.cpp has {shown(expected)}", flush=True)
        results.append(is_same)
    return results


def is_close(ours: Any, theirs: Any) -> bool:
    """Whether the weights of two tensors differ in their last bits only."""
    weights, expected = (np.frombuffer(tensor[-1], np.float32) for tensor in (ours, theirs))
    return bool(np.allclose(weights, expected, rtol=1e-6, atol=0))


def shown(value: Any) -> str:
    """A value without the bytes of a tensor."""
    if isinstance(value, tuple) and value and isinstance(value[-1], bytes):
        value = value[:-1]
    return repr(value)[:200]


def identity_row(label: str, identical: Iterable[bool]) -> Row:
    """A row that is met if all are identical."""
    values = list(identical)
    return Row(label, f"{sum(values)}", f"{len(values)}", sum(values) / len(values), ">= 1")


if __name__ == "__main__":
    main()
