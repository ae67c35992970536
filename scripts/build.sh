#!/bin/sh
# Installs llama.cpp in .venv, built for this machine: build.sh cpu|cuda|metal|vulkan|rpc|avx2 [PIP OPTION...]
# CMAKE_ARGS are further options of llama.cpp. The wheel is kept for other checkouts. Where there is no C++ compiler,
# Zig's is downloaded, and removed afterwards.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
requirement=$(sed -n 's/^ *"\(llama-cpp-python>=[^"]*\)".*/\1/p' pyproject.toml)

case $1 in
requirement) echo "$requirement" && exit ;;
cpu) options= ;;
avx2) options="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON" ;;
*) options="-DGGML_$(echo "$1" | tr '[:lower:]' '[:upper:]')=ON" ;;
esac
if "${CXX:-c++}" --version >/dev/null 2>&1; then
    kind=$1
elif [ "$1" = cuda ] || [ "$1" = metal ] || [ "$1" = vulkan ]; then
    echo "error: there is no C++ compiler, which $1 needs" >&2
    echo " hint: install g++ or Clang; on macOS, run xcode-select --install" >&2
    exit 1
else
    kind=$1-zig
fi
# Named after this machine, for whose processor it is, and what the build depends on.
changes=$({ cat scripts/llama.cmake && echo "${CMAKE_ARGS:-}"; } | cksum | cut -d ' ' -f 1)
kept="${XDG_CACHE_HOME:-$HOME/.cache}/cerebrum/wheels/$(uname -n)"
mkdir -p "$kept" 2>/dev/null || kept=.venv/wheels  # for a user without a home, as in some containers
wheels="$kept/$kind-$changes"
shift

install() {
    $python -m pip install --quiet --no-compile --force-reinstall --no-deps --no-index --find-links "$wheels" "$@" "$requirement"
}

if [ -d "$wheels" ] && install "$@"; then exit; fi
zig= watch= log=$(mktemp)
trap 'rm -rf "$zig" "$log"; [ -z "$watch" ] || kill "$watch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ "$kind" != "${kind%-zig}" ]; then
    echo "no C++ compiler found: downloading Zig's for this build (100 MB; 410 MB unpacked)"
    zig=$(mktemp -d)
    $python -m pip install --quiet --target "$zig" --group compiler
    # Zig compiles its C++ library once for each set of flags, so CMake's tests of the compiler have the same as the build.
    export CC="$zig/ziglang/zig cc -O2 -s" CXX="$zig/ziglang/zig c++ -O2 -s"
    export ZIG_GLOBAL_CACHE_DIR="$zig/cache" ZIG_LOCAL_CACHE_DIR="$zig/cache"
    options="$options -DGGML_OPENMP=OFF"
fi
echo "building llama.cpp for this machine; this takes a few minutes the first time"
quoted=$(printf "'%s'" "$(printf '%s' "$PWD/scripts/llama.cmake" | sed "s/'/'\\\\''/g")")  # split like words of a shell
export CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$quoted $options ${CMAKE_ARGS:-}"
export FORCE_CMAKE=1 CMAKE_BUILD_PARALLEL_LEVEL="$(getconf _NPROCESSORS_ONLN)"
if [ -t 1 ]; then  # Ninja's lines begin with [steps done/all]
    while sleep 1; do printf '\r%s' "$(grep -o '^ *\[[0-9]*/[0-9]*\]' "$log" | tail -n 1)"; done &
    watch=$!
fi
if ! $python -m pip wheel --verbose --no-cache-dir --no-deps --wheel-dir "$wheels" "$requirement" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "error: llama.cpp was not built, for the reason above" >&2
    case $kind in cuda) index=cu130 ;; metal | vulkan) index=$kind ;; *) index=cpu ;; esac
    echo " hint: install a wheel of it: WHEELS=https://abetlen.github.io/llama-cpp-python/whl/$index scripts/setup.sh" >&2
    exit 1
fi
if [ -n "$watch" ]; then
    kill "$watch"
    watch=
    echo
fi
install "$@"
