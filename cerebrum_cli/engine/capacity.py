"""What this machine offers to a model: memory, the speed to expect, and llama.cpp's build."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts, format_size
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.machine import (
    likely_accelerator as likely_accelerator,
    memory as memory,
    thread_count as thread_count,
)
from cerebrum_cli.engine.memory import HEADROOM, Devices
from cerebrum_cli.engine.memory_plan import place
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT, LoadOptions
from cerebrum_cli.gguf.sizes import ModelSizes

SYSTEM_RESERVE = 2**30  # bytes of memory left to the system
PROMPT_TOKENS, ANSWER_TOKENS = 200, 100  # of the question and the answer that are forecast
FORECAST = f"speed after a prompt of {PROMPT_TOKENS} tokens"
KEY_FEATURES = ("AVX2", "FMA", "F16C", "DOTPROD")  # many times slower without; others change speed by a fraction


@frozen
class Forecast:
    """Tokens generated per second, seconds until the first one after a prompt, and of reasoning before the answer."""

    tokens_per_second: float
    first_token_s: float
    thinking_s: float

    @property
    def answer_s(self) -> float:
        """Seconds until a short answer is complete."""
        return self.first_token_s + self.thinking_s + ANSWER_TOKENS / self.tokens_per_second


class ModelNeeds(NamedTuple):
    """Bytes that a model needs in all, and of the host's memory; whether GPUs with memory of their own hold all."""

    total: int
    host: int
    is_on_gpus: bool


def planned_context(requested: int | None, trained: int | None) -> int:
    """Context size to assess a model at: the requested one, or the default if memory is no limit."""
    return requested or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


@frozen
class Capacity:
    """Bytes of memory of this machine, and its GPUs as of the last loaded model; None before that.

    Without a `speed`, as with GPUs, none is forecast.
    """

    memory: int
    devices: Devices | None = None
    speed: machine.Speed | None = None

    @property
    def description(self) -> str:
        memory = f"this machine has {format_size(self.memory)} of memory"
        if self.devices is None:
            return f"{memory}; GPUs are detected when a model is first loaded"
        if not self.devices:
            return f"{memory} and no GPU supported by llama.cpp"
        gpus = " and ".join(f"{format_size(device.free)} on {device.description}" for device in self.devices)
        return f"{memory}, {gpus}"

    @property
    def host_memory(self) -> int:
        return max(0, self.memory - SYSTEM_RESERVE)

    @property
    def usable_memory(self) -> int:
        """Bytes available to a model on the host and on GPUs with memory of their own."""
        memory = self.host_memory
        for device in self.devices or ():
            if not device.is_unified:
                memory += max(0, device.free - HEADROOM)
        return memory

    def needs(self, sizes: ModelSizes, context_size: int) -> ModelNeeds:
        """Memory for a model with one sequence, with as many layers on GPUs as these can hold."""
        devices = self.devices or ()
        plan = place(LoadOptions(Path(), context_size, sizes), context_size, 1, devices)
        needs = plan.needs
        is_offloaded = plan.is_offloaded and not plan.host_experts
        is_on_gpus = is_offloaded and not any(device.is_unified for device in devices)
        return ModelNeeds(needs.total + HEADROOM, needs.on_host(devices) + HEADROOM, is_on_gpus)

    def forecast(self, sizes: ModelSizes, thinking_tokens: int = 0) -> Forecast | None:
        if self.speed is None or not sizes.active_bytes:
            return None
        rate = self.speed.generation / machine.token_work(sizes, machine.LAYER_BYTES)
        prompt_s = PROMPT_TOKENS * machine.token_work(sizes, self.speed.prompt_layer) / self.speed.prompts
        return Forecast(_rounded(rate), _rounded(prompt_s), _rounded(thinking_tokens / rate))


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


@frozen
class Build:
    """An installed llama.cpp: versions, backends, the CPU features it was built with, and visible accelerators.

    One that `offloads` was built for GPUs, even if it finds none.
    """

    version: str
    ggml: str
    backends: Texts
    cpu_features: Texts
    offloads: bool
    devices: Devices

    @property
    def unused_features(self) -> list[str]:
        """Features of the CPU that make it many times faster, and that this build does not use."""
        flags = machine.processor_flags() or frozenset()
        present = [name for name in KEY_FEATURES if machine.CPU_FLAGS[name] in flags]
        return [name for name in present if name not in self.cpu_features]

    @property
    def hardware(self) -> str:
        """Names of the processor and the GPUs."""
        return ", ".join((machine.processor_name(), *(device.description for device in self.devices)))

    @property
    def gpus(self) -> Texts:
        """A line for each accelerator: its name and its memory."""
        lines = []
        for device in self.devices:
            memory = f"{format_size(device.free)} of {format_size(device.total)} free"
            lines.append(f"{device.name} {device.description}: {memory}")
        return tuple(lines)


def installed_build() -> Build:
    """Describe the installed llama.cpp; finding its GPUs initializes their drivers. Raises EngineError."""
    from cerebrum_cli.engine.llama import bindings

    return Build(
        version=bindings.package_version(),
        ggml=bindings.library_text("ggml_version"),
        backends=bindings.backends(),
        offloads=bindings.offloads(),
        cpu_features=bindings.cpu_features(),
        devices=bindings.accelerators(),
    )


def build_version() -> str:
    """The versions of llama.cpp and its bindings, like "0c1e570 with llama-cpp-python 0.3.36"."""
    from cerebrum_cli.engine.llama.bindings import library_text, package_version

    return f"{library_text('ggml_commit')} with llama-cpp-python {package_version()}"
