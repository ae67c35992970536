"""Types of the tensors in each file type, against those that llama.cpp's own quantization chooses."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import Shape, write_quantized

from cerebrum_cli.engine.llama.bindings import llama, log
from cerebrum_cli.gguf.contents import FILE_TYPES
from cerebrum_cli.weights.plan import plan_conversion
from cerebrum_cli.weights.table import read_table
from cerebrum_cli.weights.target import TYPES

# "[ 1/21] blk.0.attn_q.weight - [...], type = f16, size = ... (q4_K)", where the last is the new type, if it differs
_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+).*type = *(\w+), .*?(?:\((\w+)\)|$)")
SHAPES = {
    "grouped": (Shape(layers=16, width=256, heads=8, kv_heads=2, ffn=256), 0),
    "not grouped": (Shape(layers=16, width=256, heads=4, kv_heads=4, ffn=256), 0),
    "four experts": (Shape(layers=8, width=256, heads=8, kv_heads=2, ffn=32), 4),
    "eight experts": (Shape(layers=8, width=256, heads=8, kv_heads=4, ffn=32), 8),
    "odd rows": (Shape(layers=8, width=288, heads=8, kv_heads=2, ffn=280), 8),
}


@pytest.fixture(scope="session", params=SHAPES)
def unquantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape, experts = SHAPES[request.param]
    path = tmp_path_factory.mktemp("unquantized") / "model.gguf"
    return write_quantized(path, shape=shape, experts=experts, encoding="F16")


def types_of_llama_cpp(path: Path, file_type: str) -> Iterator[tuple[str, str]]:
    """Names and types of the tensors of a file that llama.cpp would write."""
    [number] = [number for number, name in FILE_TYPES.items() if name == file_type]
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.dry_run = number, True
    lines: list[str] = []
    log.forward = lines.append
    try:
        assert llama.llama_model_quantize(os.fsencode(path), os.fsencode(path.with_suffix(".none")), params) == 0
    finally:
        log.forward = None
    for match in filter(None, map(_LINE.match, lines)):
        yield match[1], (match[3] or match[2]).upper()


@pytest.mark.parametrize("file_type", TYPES)
def test_each_tensor_has_the_type_that_llama_quantize_gives_it(file_type: str, unquantized: Path) -> None:
    planned = plan_conversion(read_table("model", [unquantized]), file_type, {})
    assert {tensor.name: tensor.kind.name for tensor in planned.tensors} == dict(
        types_of_llama_cpp(unquantized, file_type)
    )
