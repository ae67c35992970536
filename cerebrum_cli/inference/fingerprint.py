"""What generated text depends on besides the prompt, by readable names: only equal ones belong in one result."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from cerebrum_cli.core.settings import GENERATION_KEYS, Settings
from cerebrum_cli.inference.format_choice import choose_format
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model

MODEL_KEYS = ("model", "model file", "adapter", "format", "cache type k", "cache type v")
_ALWAYS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")


def generation_fingerprint(
    settings: Settings, grammar: str | None, model: Model, file: Model, library: Library
) -> dict[str, Any]:
    """The model, the settings and the grammar; `file` is the model file used.

    Older versions have recorded the settings of `_ALWAYS` only, so the others are left out where they are the default.
    """
    values, default = asdict(settings), asdict(Settings())
    recorded = [key for key in GENERATION_KEYS if key in _ALWAYS or values[key] != default[key]]
    return {
        "model": model.label,
        "model file": library.file_identity(file),
        "adapter": file.adapter_identity,
        "format": choose_format(settings.format, model.known_format, model.header.chat_template),
        **{key.replace("_", " "): values[key] for key in ("system", *recorded, "ctx", "cache_type_k", "cache_type_v")},
        "grammar": grammar and sha256(grammar.encode()).hexdigest(),
    }
