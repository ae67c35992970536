"""Build a wheel of `cerebrum-llama`: llama.cpp for any processor of an architecture, with llama-cpp-python's bindings.

    wheels.py x86_64|aarch64|arm64 DIRECTORY [KERNELS]

The kernels are compiled for each generation of processors, and llama.cpp loads the best that the processor runs.
KERNELS, such as haswell,zen4, are compiled alone, for tests on one machine. For Linux, the compiler is Zig's, for glibc
2.28 and newer; for macOS (arm64), it is the system's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLIBC = "2.28"
BUILD = 0  # of releases with the same version of llama-cpp-python, from 0
OPTIONS = (
    *("-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON", "-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF"),
    *("-DLLAVA_BUILD=OFF", f"-DCMAKE_INSTALL_RPATH={'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}"),
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'scripts' / 'llama.cmake'}",
)
UNUSED = ("llama_cpp/__init__.py", "llama_cpp/llava_cpp.py", "llama_cpp/mtmd_cpp.py", "llama_cpp/server/")
LICENSES = ("LICENSE.md", "LICENSE.llama.cpp")
METADATA = """\
Metadata-Version: 2.4
Name: cerebrum-llama
Version: {version}
Summary: llama.cpp for any processor, with the bindings of llama-cpp-python, for cerebrum-cli
License-Expression: MIT
License-File: LICENSE.md
License-File: LICENSE.llama.cpp
Requires-Python: >=3.11
Requires-Dist: typing-extensions>=4.5
"""
TAG = """\
Wheel-Version: 1.0
Generator: cerebrum-llama
Root-Is-Purelib: false
Tag: py3-none-{platform}
"""


def build(architecture: str, directory: Path, kernels: str) -> Path:
    """Build llama-cpp-python's wheel for another processor than this machine's, or for any of its kind."""
    options, environment = [*OPTIONS, f"-DKERNELS={kernels.replace(',', ';')}"], dict(os.environ)
    if sys.platform == "linux":
        import ziglang

        flags = f"-O2 -s -target {architecture}-linux-gnu.{GLIBC}"
        if architecture == "x86_64":
            flags += " -mevex512"  # which this Clang wants beside -mavx512f
        zig = directory / "zig"  # CMake splits a command at spaces, which the path of the checkout may have
        words = (sys.executable, ROOT / "scripts" / "zig_cc.py", Path(ziglang.__file__).with_name("zig"))
        zig.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
        zig.chmod(0o755)
        environment |= {"CC": f"{zig} cc {flags}", "CXX": f"{zig} c++ {flags}"}
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={architecture}"]
    else:
        environment["MACOSX_DEPLOYMENT_TARGET"] = "13.3"
    requirement = run([str(ROOT / "scripts" / "build.sh"), "requirement"], capture_output=True).stdout.strip()
    environment |= {"CMAKE_ARGS": shlex.join(options), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "-w", str(directory), requirement],
        env=environment,
    )
    [wheel] = directory.glob("llama_cpp_python-*.whl")
    return wheel


def repack(wheel: Path, architecture: str, directory: Path) -> Path:
    """Turn the wheel into one of `cerebrum-llama`, which can be installed beside llama-cpp-python; return its tree."""
    _, version, _, _, platform = wheel.stem.split("-")
    if BUILD:
        version += f".post{BUILD}"
    if sys.platform == "linux":  # the name has this machine's architecture
        platform = f"linux_{architecture}"
    tree = directory / f"cerebrum_llama-{version}"
    information = tree / f"cerebrum_llama-{version}.dist-info"
    library = tree / "cerebrum_llama" / "lib"
    library.mkdir(parents=True)
    (information / "licenses").mkdir(parents=True)
    (information / "METADATA").write_text(METADATA.format(version=version))
    (information / "WHEEL").write_text(TAG.format(platform=platform))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = Path(name)
            if path.name in LICENSES:
                (information / "licenses" / path.name).write_bytes(archive.read(name))
            elif name.startswith("llama_cpp/") and path.suffix == ".py" and not name.startswith(UNUSED):
                (tree / "cerebrum_llama" / path.name).write_bytes(archive.read(name))
            elif is_needed(path.name):
                (library / path.name).write_bytes(archive.read(name))
    (tree / "cerebrum_llama" / "__init__.py").write_text("")
    return tree


def is_needed(name: str) -> bool:
    """Whether a file is a library under the name by which it is loaded: each is in the wheel under three names."""
    if name.startswith(("libllama.", "libggml-cpu-", "libggml-metal", "libggml-blas")):
        return name.endswith((".so", "libllama.dylib"))
    return name.startswith(("libggml.", "libggml-base.")) and name.endswith((".so.0", ".0.dylib"))


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def main(architecture: str, directory: str, kernels: str = "") -> None:
    with tempfile.TemporaryDirectory() as temporary:
        tree = repack(build(architecture, Path(temporary), kernels), architecture, Path(temporary))
        run([sys.executable, "-m", "wheel", "pack", str(tree), "-d", temporary])
        [wheel] = Path(temporary).glob("cerebrum_llama-*.whl")
        Path(directory).mkdir(parents=True, exist_ok=True)
        if sys.platform == "linux":
            run([sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "-w", directory, str(wheel)])
            if not list(Path(directory).glob(f"cerebrum_llama-*manylinux*_{architecture}.whl")):
                sys.exit("auditwheel found no manylinux platform for the wheel")
        else:
            shutil.move(wheel, directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
