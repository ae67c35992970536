"""The single values of a recipe: a model, a range of layers, a type of numbers."""

from __future__ import annotations

from collections.abc import Mapping

from cerebrum_cli.merge.location import Place, quoted, read_row, read_text

_MOST_LAYERS = 2**32  # GGUF's block_count has 32 bits
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


def read_model(place: Place, value: object) -> str:
    """Return a model's name; mergekit writes it as a mapping too: of path and revision, or that one as its `model`."""
    if not isinstance(value, dict):
        return _merged_alone(place, read_text(place, value, "the name of a model"))
    if "model" in value:
        row = read_row(place, value, ("model",), unsupported=("lora", "override_architecture"))
        return read_model(place.key("model"), row.get("model"))
    row = read_row(place, value, ("path", "revision"))
    path = _merged_alone(place.key("path"), read_text(place.key("path"), row.get("path"), "the name of a model"))
    revision = row.get("revision")
    return path if revision is None else f"{path}@{read_text(place.key('revision'), revision, 'a revision')}"


def _merged_alone(place: Place, name: str) -> str:
    """Return a name that is not mergekit's `model+lora`."""
    if "+" in name and not name.lower().endswith(".gguf"):
        raise place.error(f"{quoted(name)} names a LoRA, which is not supported", "name a model without a `+`")
    return name


def read_layer_range(place: Place, value: object) -> tuple[int, int]:
    """Return the first layer of a range and the one behind its last."""
    match value:
        case [int(start), int(end)] if bool not in (type(start), type(end)) and 0 <= start < end < _MOST_LAYERS:
            return start, end
    do = "write [START, END]: the first layer, counted from 0, and the one after the last"
    raise place.error("a range of layers is needed" if value is not None else "it is missing", do)


def read_dtype(place: Place, value: object) -> str:
    """Return F32, F16 or BF16, whichever of its names a type goes by."""
    dtype = _DTYPES.get(value.lower().removeprefix("torch.")) if isinstance(value, str) else None
    if dtype is None:
        raise place.error(f"{quoted(value)} is not a type for a merge", "use float32, float16 or bfloat16")
    return dtype
