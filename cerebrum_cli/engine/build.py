"""How the llama.cpp that is installed here was built: what for, and whether this machine's processor is that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cerebrum_cli.engine.plan import Device

# The words of llama.cpp for what a processor can, and Linux's in /proc/cpuinfo. A program that uses one the processor
# has not is ended by the system, so these are compared before anything is evaluated.
CPU_FLAGS: Mapping[str, str] = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
KEY_FEATURES = (
    "AVX2",
    "FMA",
    "F16C",
    "DOTPROD",
)  # without them a model is many times slower; of the others it is parts


@dataclass(frozen=True, slots=True)
class Build:
    """What llama.cpp says of itself: versions, its backends, what each was built with, and the accelerators it sees."""

    version: str
    ggml: str
    backends: tuple[str, ...]
    features: Mapping[str, Mapping[str, str]]
    offloads: bool
    devices: tuple[Device, ...]

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """What of a processor, and which libraries beside it, this build uses."""
        return tuple(name for name, value in self.features.get("CPU", {}).items() if value != "0")

    def unsupported_features(self, flags: frozenset[str] | None) -> tuple[str, ...]:
        """Return what it uses and a processor with these flags has not; nothing where they are not known."""
        return tuple(name for name in self.cpu_features if flags and name in CPU_FLAGS and CPU_FLAGS[name] not in flags)

    def unused_features(self, flags: frozenset[str] | None) -> tuple[str, ...]:
        """Return what a processor with these flags has and this build leaves alone, of what decides its speed."""
        return tuple(
            name for name in KEY_FEATURES if CPU_FLAGS[name] in (flags or ()) and name not in self.cpu_features
        )


def read_features(text: str) -> dict[str, dict[str, str]]:
    """Read llama.cpp's line about itself: "CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 900 | "; backends, then values."""
    features: dict[str, dict[str, str]] = {}
    backend = ""
    for part in text.split("|"):
        head, colon, pair = part.rpartition(" : ")
        if colon:
            backend = head.strip()
        name, sign, value = pair.partition("=")
        if sign:
            features.setdefault(backend, {})[name.strip()] = value.strip()
    return features
