"""How the installed llama.cpp was built, whether the build suits this machine's CPU, and how to rebuild it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from cerebrum_cli.core.text import pip_install
from cerebrum_cli.engine.memory import Device

# CPU features as llama.cpp names them, and as Linux does in /proc/cpuinfo. An instruction that the CPU lacks kills the
# process, so the two are compared before anything is evaluated.
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
KEY_FEATURES = ("AVX2", "FMA", "F16C", "DOTPROD")  # many times slower without; others change speed by a fraction
REQUIREMENT = "llama-cpp-python>=0.3.36,<0.3.37"  # as in pyproject.toml


@dataclass(frozen=True, slots=True)
class Build:
    """An installed llama.cpp: versions, backends, the features each was built with, and visible accelerators."""

    version: str
    ggml: str
    backends: tuple[str, ...]
    features: Mapping[str, Mapping[str, str]]
    offloads: bool
    devices: tuple[Device, ...]

    @property
    def cpu_features(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.features.get("CPU", {}).items() if value != "0")


def lacking(features: Iterable[str], flags: frozenset[str] | None) -> tuple[str, ...]:
    """Features that a CPU with these flags lacks; empty if the flags are unknown."""
    return tuple(name for name in features if flags and name in CPU_FLAGS and CPU_FLAGS[name] not in flags)


def read_features(text: str) -> dict[str, dict[str, str]]:
    """Parse llama.cpp's system info, such as "CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 900 | ", by backend."""
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


def rebuild_command(option: str = "") -> str:
    """Command that builds the supported llama.cpp on this machine, with a CMake option."""
    arguments = f'CMAKE_ARGS="{option}" ' if option else ""
    return arguments + pip_install(f'--force-reinstall --no-cache-dir --no-deps "{REQUIREMENT}"')


def build_fingerprint() -> str:
    """Digest that identifies a build of llama.cpp, of the names, sizes and times of its libraries."""
    spec = find_spec("llama_cpp")
    files = []
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "lib").glob("*")):
            files.append(path.name)
            with suppress(OSError):  # a broken link
                stat = path.stat()
                files[-1] += f" {stat.st_size} {stat.st_mtime_ns}"
    return sha256("\n".join(files).encode()).hexdigest()[:16] if files else "none"
