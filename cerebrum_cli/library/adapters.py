"""LoRA adapters of a model. Whether one fits is found when llama.cpp first loads it, in a child process."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import quoted
from cerebrum_cli.gguf.header import read_tables

ACTIVATION = "adapter.alora.invocation_tokens"  # of an adapter that applies only after these tokens


@frozen
class Adapter:
    """A LoRA adapter applied to a model: its file, and the bytes of its weights."""

    path: Path
    scale: float
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.path}:{self.scale}"

    @property
    def identity(self) -> str:
        return f"{self.sha256}:{self.scale}"


def adapter_size(path: Path, architecture: str) -> int:
    """Bytes of an adapter's weights. Raises ModelFileError if it is not for models of this architecture."""
    adapter = read_tables(path, whole=True)
    made_for = str(adapter.metadata.get("general.architecture"))
    if adapter.metadata.get("general.type") != "adapter":
        hint = "name a LoRA adapter in GGUF format, as llama.cpp's convert_lora_to_gguf.py writes it"
        raise ModelFileError(path, "a model, not an adapter", hint)
    if ACTIVATION in adapter.metadata:  # which llama.cpp would apply to every token
        problem = "an activated LoRA adapter, which applies only after certain tokens, and is not supported"
        raise ModelFileError(path, problem, "use an ordinary LoRA adapter")
    if made_for != architecture:
        problem = f"made for the architecture {quoted(made_for)}, but the model's is {quoted(architecture)}"
        raise ModelFileError(path, problem, "use an adapter that was made for this model")
    return sum(tensor.size for tensor in adapter.tensors)
