"""Tables of models in memory, recipes that merge them, and the plans of these merges."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_models import LLAMA, MIXTRAL, tensor_shapes

from cerebrum_cli.core.errors import MergeError, UsageError
from cerebrum_cli.gguf.contents import TYPE_NUMBERS, Tensor, Value
from cerebrum_cli.weights.merge_plan import plan_merge
from cerebrum_cli.weights.plan import Plan
from cerebrum_cli.weights.recipe import parse_recipe
from cerebrum_cli.weights.table import Table


class Shape(NamedTuple):
    """Sizes of a Llama; the experts of a layer share one tensor."""

    layers: int = 4
    width: int = 256
    kv_width: int = 128
    ffn: int = 512
    vocabulary: int = 6
    tied: bool = False
    experts: int = 0


TINY = Shape()


def dimensions(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor, row length first."""
    for name, sizes in tensor_shapes(MIXTRAL if shape.experts else LLAMA, shape._asdict()):
        if name != "output.weight" or not shape.tied:
            yield name, sizes[::-1]


def k_quants(name: str) -> str:
    """Type of a tensor in a file like Q4_K_M."""
    if "_norm" in name or "ffn_gate_inp" in name:
        return "F32"
    return "Q6_K" if name == "output.weight" or name.startswith(("blk.0.ffn_down", "blk.1.attn_v")) else "Q4_K"


def floats(name: str) -> str:
    """Type of a tensor in a file that is not quantized."""
    return "F32" if "_norm" in name or "ffn_gate_inp" in name else "F16"


def array_item(content: Any) -> Any:
    return content.encode() if isinstance(content, str) else content


def value(content: Any) -> Value:
    if isinstance(content, tuple | list):
        return Value("ARRAY", tuple(map(array_item, content)), value(content[0]).type)
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", bytes: "STRING"}
    return Value(kinds[type(content)], content)


def table(
    name: str = "a",
    extra: Mapping[str, Any] | None = None,
    shape: Shape = TINY,
    type_of: Callable[[str], str] = k_quants,
) -> Table:
    """Table of a Llama; `extra` metadata is added, or removed if it is None."""
    metadata = {
        "general.architecture": "llama",
        "general.name": f"Model {name}",
        "general.file_type": 15,
        "llama.block_count": shape.layers,
        "llama.context_length": 32768,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tuple(b"%d" % number for number in range(shape.vocabulary)),
        "tokenizer.ggml.merges": (b"a b", b"b c"),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": f"template of {name}",
        **(extra or {}),
    }
    tensors = {}
    for offset, (each, sizes) in enumerate(dimensions(shape)):
        tensors[each] = Tensor(each, sizes, TYPE_NUMBERS[type_of(each)], Path(f"{name}.gguf"), offset)
    return Table(name, {key: value(content) for key, content in metadata.items() if content is not None}, tensors)


def without(whole: Table, tensor: str) -> Table:
    return Table(whole.name, whole.metadata, {name: each for name, each in whole.tensors.items() if name != tensor})


def plan(recipe: Mapping[str, Any], *tables: Table, type: str | None = None) -> Plan:
    parsed = parse_recipe(json.dumps(recipe), "recipe.yaml")
    made, _ = plan_merge(parsed, {each.name: each for each in tables}, type, "Merged", {})
    return made


def refusal(recipe: Mapping[str, Any], *tables: Table) -> tuple[str, str]:
    """Message and hint of the error that the plan of a merge raises."""
    with pytest.raises((MergeError, UsageError)) as caught:
        plan(recipe, *tables)
    return caught.value.message, caught.value.hint


def stacked(*ranges: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    slices = [{"sources": [{"model": model, "layer_range": [start, end]}]} for model, start, end in ranges]
    return {"merge_method": "passthrough", "slices": slices, **more}


def mixed(*models: str, method: str = "linear", **more: Any) -> dict[str, Any]:
    sources = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": method, "models": sources, **more}


def origins(made: Plan) -> dict[str, Any]:
    """What each tensor copies, or the sum that it is."""
    return {tensor.name: tensor.origin for tensor in made.tensors}


def contents(made: Plan) -> dict[str, Any]:
    return {key: each.content for key, each in made.metadata.items()}


def types(made: Plan) -> Counter[tuple[str, str]]:
    suffixes = [(tensor.name.split(".")[-2], tensor.kind.name) for tensor in made.tensors]
    return Counter(suffixes)
