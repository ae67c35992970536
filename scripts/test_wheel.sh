#!/bin/sh
# Tests the wheel for any processor in .venv/wheel: test_wheel.sh [PYTEST OPTION...]
# First with the kernels that it chooses for this processor. If these use AVX-512, then with those for AVX2, too.
# Each time, the texts of a batch, row by row, are compared with those of the build in .venv, and the tests of the engine run.
# Tests that do not run llama.cpp are left out.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python

texts() {
    seq 100 | PYTHONPATH=$1 $python -m cerebrum_cli batch - -m nano --template "What is {text} plus 25?" -n 64 \
        --parallel 1 --seed 1 -q -o - | $python -c "
import json, sys
texts = [json.loads(line)['text'] for line in sys.stdin]
assert len(texts) == 100
print(*texts, sep='\n')"
}

check() {  # check KERNELS PATTERN [PYTEST OPTION...]: with the kernels whose files match
    kernels=$PWD/.venv/wheel/$1
    rm -rf "$kernels"
    $python -m pip install --quiet --no-deps --no-index --target "$kernels" .venv/wheel/*.whl
    find "$kernels" -name 'libggml-cpu-*' ! -name "$2" -delete
    ln -s cerebrum_llama "$kernels/llama_cpp"  # under the name of the bindings, and found before those in .venv
    PYTHONPATH=$kernels $python -c "
from cerebrum_cli.engine.capacity import installed_build
from cerebrum_cli.engine.llama.bindings import llama
assert llama.__file__.startswith('$kernels'), llama.__file__
print('$1:', *installed_build().cpu_features)"
    shift 2
    texts "$kernels" > .venv/wheel/texts
    texts "" | diff - .venv/wheel/texts || {
        echo "error: these texts differ from those of the build for this machine" >&2
        exit 1
    }
    PYTHONPATH=$kernels $python -m pytest --numprocesses 2 --dist loadfile -m "not fuzz and not hypothesis" \
        --ignore-glob "*_remote*" --ignore-glob "*_client.py" --ignore-glob "*_endpoint.py" \
        tests/engine tests/weights/test_codec.py tests/cli/test_architectures.py "$@"
}

check best '*' "$@"
if grep -q avx512f /proc/cpuinfo 2>/dev/null; then
    check avx2 '*-haswell.so' "$@"
else
    echo "this processor has no AVX-512, whose kernels are not tested"
fi
