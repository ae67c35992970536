"""The single values of a recipe: a model, a range of layers, a type of numbers."""

from __future__ import annotations

from collections.abc import Mapping

from cerebrum_cli.merge.location import Location, quoted, read_mapping, read_text

_MAX_LAYERS = 2**32  # GGUF's block_count has 32 bits
_DTYPES: Mapping[str, str] = {
    "float32": "F32",
    "fp32": "F32",
    "f32": "F32",
    "float16": "F16",
    "fp16": "F16",
    "f16": "F16",
    "bfloat16": "BF16",
    "bf16": "BF16",
}


def read_model(location: Location, value: object) -> str:
    """Return a model's name; mergekit writes it as a mapping too: of path and revision, or that one as its `model`."""
    if not isinstance(value, dict):
        return _require_no_lora(location, read_text(location, value, "the name of a model"))
    if "model" in value:
        row = read_mapping(location, value, ("model",), unsupported=("lora", "override_architecture"))
        return read_model(location.key("model"), row.get("model"))
    row = read_mapping(location, value, ("path", "revision"))
    path = _require_no_lora(
        location.key("path"), read_text(location.key("path"), row.get("path"), "the name of a model")
    )
    revision = row.get("revision")
    return path if revision is None else f"{path}@{read_text(location.key('revision'), revision, 'a revision')}"


def _require_no_lora(location: Location, name: str) -> str:
    """Return a name that is not mergekit's `model+lora`."""
    if "+" in name and not name.lower().endswith(".gguf"):
        raise location.error(f"{quoted(name)} names a LoRA, and those are not supported", "name a model without a `+`")
    return name


def read_layer_range(location: Location, value: object) -> tuple[int, int]:
    """Return the first layer of a range and the one behind its last."""
    match value:
        case [int(start), int(end)] if bool not in (type(start), type(end)) and 0 <= start < end < _MAX_LAYERS:
            return start, end
    do = "write [START, END], whole numbers: the first layer, counted from 0, and the one behind the last"
    raise location.error("a range of layers is needed" if value is not None else "it is missing", do)


def read_dtype(location: Location, value: object) -> str:
    """Return F32, F16 or BF16, whichever of its names a type goes by."""
    dtype = _DTYPES.get(value.lower().removeprefix("torch.")) if isinstance(value, str) else None
    if dtype is None:
        raise location.error(f"{quoted(value)} is no type for a merge", "it is float32, float16 or bfloat16")
    return dtype
