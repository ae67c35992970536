"""Parsers of single values in a recipe: a model, a layer range, a dtype."""

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
    """Parse a model name, also in mergekit's mapping forms: path and revision, possibly within `model`."""
    if not isinstance(value, dict):
        return _require_no_lora(location, read_text(location, value, "a model name"))
    if "model" in value:
        row = read_mapping(location, value, ("model",), unsupported=("lora", "override_architecture"))
        return read_model(location.key("model"), row.get("model"))
    row = read_mapping(location, value, ("path", "revision"))
    path = _require_no_lora(location.key("path"), read_text(location.key("path"), row.get("path"), "a model name"))
    revision = row.get("revision")
    return path if revision is None else f"{path}@{read_text(location.key('revision'), revision, 'a revision')}"


def _require_no_lora(location: Location, name: str) -> str:
    """Refuse mergekit's `model+lora`."""
    if "+" in name and not name.lower().endswith(".gguf"):
        raise location.error(f"{quoted(name)}: LoRA adapters are not supported", "name a model without a `+`")
    return name


def read_layer_range(location: Location, value: object) -> tuple[int, int]:
    """Parse a range of layers: its first layer and its end, which is not included."""
    match value:
        case [int(start), int(end)] if bool not in (type(start), type(end)) and 0 <= start < end < _MAX_LAYERS:
            return start, end
    hint = "write [START, END]: the first layer, counted from 0, and the end, which is not included"
    raise location.error("not a range of layers" if value is not None else "missing", hint)


def read_dtype(location: Location, value: object) -> str:
    """Parse a dtype by any of its names into F32, F16 or BF16."""
    dtype = _DTYPES.get(value.lower().removeprefix("torch.")) if isinstance(value, str) else None
    if dtype is None:
        raise location.error(f"{quoted(value)} is not a supported dtype", "use float32, float16 or bfloat16")
    return dtype
