"""The sampling settings that a model's file recommends."""

from __future__ import annotations

from contextlib import suppress

from cerebrum_cli.core.declaration import InvalidValue
from cerebrum_cli.core.settings import MODEL_FILE, OPTIONS, SourcedLayer
from cerebrum_cli.gguf.header import Header

_SETTINGS = {  # by keys of general.sampling.*; there are others without an equivalent here
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_repeat": "repeat_penalty",
}
_FLOAT_DIGITS = 6  # of a number that the file holds in 32 bits: 0.95 is read as 0.949999988...


def recommended_sampling(header: Header) -> SourcedLayer:
    """The sampling settings that a file recommends; invalid ones are ignored."""
    values = {}
    for key, name in _SETTINGS.items():
        value: object = header.metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if isinstance(value, float):
            value = round(value, _FLOAT_DIGITS)
        with suppress(InvalidValue):
            values[name] = OPTIONS[name].convert(value)
    return SourcedLayer(values, origin=MODEL_FILE)
