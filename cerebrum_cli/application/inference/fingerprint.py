"""What generated text depends on besides the prompt, by readable names: only equal ones belong in one result."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from cerebrum_cli.application.inference.format_choice import choose_format
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.settings import SAMPLING_KEYS, Settings

MODEL_KEYS = ("model", "model file", "format")
_SETTINGS = ("system", *SAMPLING_KEYS, "ctx")


def generation_fingerprint(
    settings: Settings, grammar: str | None, model: Model, file: Model, library: Library
) -> dict[str, Any]:
    """The model, the settings and the grammar; `file` is the model file used."""
    values = asdict(settings)
    return {
        "model": model.label,
        "model file": library.identity(file),
        "format": choose_format(settings.format, model.known_format, model.header.chat_template),
        **{key.replace("_", " "): values[key] for key in _SETTINGS},
        "grammar": grammar and sha256(grammar.encode()).hexdigest(),
        **({} if settings.loop_check else {"loop check": False}),
    }
