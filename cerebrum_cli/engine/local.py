"""The engine on this machine: how a model is opened, its prompt cache, and what is recorded of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cerebrum_cli.core.events import Emit, Timings
from cerebrum_cli.core.files import remove
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.gguf.sizes import ModelSizes

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.capacity import Capacity
    from cerebrum_cli.engine.engine import Engine
    from cerebrum_cli.engine.prompt_cache import StateStore
    from cerebrum_cli.engine.step import StopFlag

# Loads a model file and reports progress; the flag interrupts it.
OpenFile: TypeAlias = "Callable[[LoadOptions, Emit, StopFlag], Backend]"


def open_prompt_cache(directory: Path, limit: int, model: str, format: str) -> StateStore:
    """The prompts on disk of a model in one prompt format, in a directory limited to `limit` bytes for all models."""
    from cerebrum_cli.engine.prompt_cache import StateStore

    return StateStore(directory, limit, model, format)


def open_engine(
    options: LoadOptions, open_file: OpenFile, open_cache: Callable[[], StateStore] | None = None
) -> Engine:
    """Start to load a model, without waiting."""
    from cerebrum_cli.engine.local_engine import LocalEngine

    return LocalEngine(partial(open_file, options), open_cache)


def clear_prompt_cache(directory: Path) -> None:
    """Remove the saved prompts of all models."""
    from cerebrum_cli.engine.prompt_cache import STATE

    for path in directory.glob(f"*{STATE}"):
        remove(path)


@frozen
class MachineRecords:
    """What is recorded of this machine, in a directory: the GPUs, its speed, and the model files that were loaded."""

    directory: Path

    def open_file(self, options: LoadOptions, emit: Emit, stop: StopFlag) -> Backend:
        """Load a model with llama.cpp. Raises ModelFileError if it rejects the file."""
        from cerebrum_cli.engine.llama.load import open_llama

        return open_llama(options, emit, stop, self.directory)

    def try_template(self, path: Path) -> None:
        """Raise ModelFileError for a file whose chat template takes too much time or memory in a limited process."""
        from cerebrum_cli.engine.llama.first_load import require_loads
        from cerebrum_cli.engine.step import StopFlag

        require_loads(path, self.directory, StopFlag())

    def capacity(self) -> Capacity:
        """Memory of this machine, the accelerators that the last loaded model found, and its speed without any."""
        from cerebrum_cli.engine.capacity import Capacity

        memory = machine.memory().total
        devices = machine.load_devices(self.directory)
        if devices or (devices is None and machine.likely_accelerator() in ("cuda", "metal")):
            return Capacity(memory, devices)
        return Capacity(memory, devices, machine.load_speed(self.directory))

    def record_bandwidth(self) -> None:
        """Measure how fast the memory is, once, for forecasts before the first reply."""
        machine.record_bandwidth(self.directory)

    def record_replies(self, sizes: ModelSizes, replies: Iterable[Timings]) -> None:
        """Record how fast a model without GPUs has replied, for forecasts."""
        if sizes.active_bytes >= machine.MIN_BYTES and not machine.load_devices(self.directory):
            machine.record_replies(self.directory, sizes, replies)


def native_function(symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
    """A function of llama.cpp's library, with the types of ctypes that its bindings omit."""
    from cerebrum_cli.engine.llama.bindings import bind

    return bind(symbol, result, arguments)


def show_log(write: Callable[[str], None]) -> None:
    """Write each line of llama.cpp's log."""
    from cerebrum_cli.engine.llama.bindings import log

    log.forward = write
