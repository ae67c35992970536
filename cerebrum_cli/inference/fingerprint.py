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


def generation_fingerprint(settings: Settings, grammar: str | None, model: Model, library: Library) -> dict[str, Any]:
    """The model, the settings and the grammar."""
    values = asdict(settings)
    keys = ("system", *GENERATION_KEYS, "ctx", "cache_type_k", "cache_type_v")
    return {
        "model": model.label,
        "model file": library.file_identity(model),
        "adapter": model.adapter_identity,
        "format": choose_format(settings.format, model.known_format, model.header.chat_template),
        **{key.replace("_", " "): values[key] for key in keys},
        "grammar": grammar and sha256(grammar.encode()).hexdigest(),
    }
