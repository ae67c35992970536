"""Tiny models of llama.cpp's architectures, with random weights and the ChatML vocabulary.

llama.cpp itself lists the tensors of an architecture: of ten by `llama_model_init_from_user`, from the keys in
tests/data/architectures.toml; of all by its program `test-llama-archs`, which `make peers` builds.
"""

import ctypes
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from command_line import ROOT
from gguf_files import add_values, write_file
from tiny_models import CHATML_TEMPLATE, bpe_metadata, described

PEERS = ROOT / ".peers"
WRITER = PEERS / "build" / "bin" / "test-llama-archs"
CONTEXT = 2048
VOCABULARY = 128  # tokens: ASCII, as in the models of llama.cpp's program
KEYS = tomllib.loads((ROOT / "tests" / "data" / "architectures.toml").read_text(encoding="utf-8"))
ARCHITECTURES = [name for name in KEYS if name not in ("common", "plamo2")]

# By the end of a tensor's name. llama.cpp's program draws norms near 0, so that layers hardly change the logits and a
# wrong state goes unnoticed. The state decays slowly: A is negative, and time steps are short.
CONSTANTS = {
    **dict.fromkeys(("norm.weight", "norm", "scale", "scale.weight", "rope_freqs.weight", "ssm_d"), 1.0),
    "ssm_dt.bias": -4.0,
    "ssm_a": -1.0,
}
OPTIONAL = ("scale", "dense_2.weight", "dense_2.bias")  # no converted file of these ten has them
VOCABULARY_ROWS = ("token_embd.weight", "output.weight")


class _Tensor(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("shape", ctypes.c_int64 * 4))


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def write_architecture(path: Path, name: str) -> Path:
    """Write a tiny model of one of the ten ARCHITECTURES, or plamo2."""
    keys = {**bpe_metadata(VOCABULARY), **described(f"tiny {name}", CHATML_TEMPLATE)}
    keys |= {f"{name}.{key}": value for key, value in (KEYS["common"] | KEYS[name]).items()}
    shapes: dict[str, tuple[int, ...]] = {}  # once a file with the metadata alone is written
    for _ in range(2):
        writer, random = gguf.GGUFWriter(path, name), np.random.default_rng(0)
        add_values(writer, keys)
        for tensor, shape in shapes.items():
            writer.add_tensor(tensor, _values(tensor, shape, random))
        write_file(writer)
        shapes = shapes or {key: shape for key, shape in _required_tensors(path).items() if not key.endswith(OPTIONAL)}
    return path


def _required_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that llama.cpp creates for a file's metadata."""
    from cerebrum_cli.engine.llama.bindings import llama, suppress_log

    init, get_name = llama._lib.gguf_init_from_file, llama._lib.ggml_get_name
    init.argtypes, init.restype = (ctypes.c_char_p, _InitParams), ctypes.c_void_p
    get_name.argtypes, get_name.restype = (ctypes.c_void_p,), ctypes.c_char_p
    shapes: dict[str, tuple[int, ...]] = {}

    def record(address: int, _: object) -> None:
        shape = tuple(ctypes.cast(address, ctypes.POINTER(_Tensor)).contents.shape)
        last = max((axis for axis, size in enumerate(shape) if size > 1), default=0)
        shapes[get_name(address).decode()] = shape[last::-1]

    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    with suppress_log():
        metadata = init(os.fsencode(path), _InitParams(True, None))
        fill = llama.llama_model_set_tensor_data_t(record)
        llama.llama_model_free(llama.llama_model_init_from_user(metadata, fill, None, params))
    return shapes


def all_architectures() -> list[str]:
    """Names in the sources that the program was built from; none if it was not built."""
    [table] = PEERS.glob("llama_cpp_python-*/vendor/llama.cpp/src/llama-arch.cpp") if WRITER.exists() else [None]
    return re.findall(r'\{ LLM_ARCH_\w+, +"([\w-]+)" ', table.read_text()) if table else []


def write_all_kinds(name: str, directory: Path) -> list[Path]:
    """Write the models that llama.cpp's program makes of an architecture: dense, of experts, both or none."""
    made = directory / "made"
    made.mkdir()
    done = subprocess.run([WRITER, "-a", name, "-s", "1", "-o", made], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return [_with_vocabulary(path, directory / path.name) for path in sorted(made.iterdir())]


def _with_vocabulary(source: Path, target: Path) -> Path:
    """Rewrite a model of llama.cpp's program with a vocabulary of as many tokens, a template and other weights."""
    reader = gguf.GGUFReader(source)
    keys = {
        name: field
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "general.name", "tokenizer."))
    }
    name = keys.pop("general.architecture").contents()
    kept = {key: field.contents() for key, field in keys.items() if not key.endswith("pooling_type")}
    kept = {key: value for key, value in kept.items() if value != []}  # which the `gguf` package does not write
    size = kept[f"{name}.vocab_size"]
    has_positions = any("position_embd" in tensor.name for tensor in reader.tensors)
    kept |= {} if has_positions else {f"{name}.context_length": CONTEXT}
    writer = gguf.GGUFWriter(target, name)
    for key, value in kept.items():
        types = keys[key].types
        writer.add_key_value(key, value, types[0], types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None)
    add_values(writer, {**bpe_metadata(size), **described("tiny", CHATML_TEMPLATE)})
    random = np.random.default_rng(0)
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = _values(tensor.name, shape, random) if tensor.data.dtype == np.float32 else tensor.data
        writer.add_tensor(
            tensor.name, values, raw_dtype=None if tensor.data.dtype == np.float32 else tensor.tensor_type
        )
    write_file(writer)
    return target


def _values(name: str, shape: Iterable[int], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw weights. Tokens that do not stand for text get rows of zeros, and so are never the likeliest."""
    shape = tuple(shape)
    for ending, constant in CONSTANTS.items():
        if name.endswith(ending):
            return np.full(shape, constant, np.float32)
    weights = random.standard_normal(shape, np.float32)
    if name.endswith("bias"):
        weights /= 10
    elif not name.startswith("token_embd"):
        weights /= np.float32(np.sqrt(shape[-1]))
    if name in VOCABULARY_ROWS:
        tokens = bpe_metadata(shape[0])["tokenizer.ggml.token_type"]
        assert isinstance(tokens, list)
        weights[np.array(tokens) != 1] = 0
    return weights
