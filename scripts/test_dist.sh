#!/bin/sh
# Installs the wheels of a directory as users do, with pip, uv and pipx, and asks a model each time:
# test_dist.sh DIRECTORY [PYTHON]
# Nothing is compiled, and nothing is left: all of it happens in a temporary home.
set -eu
dist=$(cd "$1" && pwd)
python=$(command -v "${2:-python3}")
version=$(basename "$dist"/cerebrum_cli-*.whl | cut -d - -f 2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Only what finds the package index and its certificates is taken from the environment.
clean() {
    env -i HOME="$work" PATH="$work/.local/bin:$work/tools/bin:/usr/bin:/bin" CC=false CXX=false \
        ${SSL_CERT_FILE:+SSL_CERT_FILE="$SSL_CERT_FILE"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
        ${UV_DEFAULT_INDEX:+UV_DEFAULT_INDEX="$UV_DEFAULT_INDEX"} \
        PIP_FIND_LINKS="$dist" UV_FIND_LINKS="$dist" "$@"
}

check() {  # check INSTALLER [COMMAND]
    cerebrum=${2:-cerebrum}
    test "$(clean "$cerebrum" --version)" = "cerebrum $version"
    clean "$cerebrum" doctor --offline --quiet
    clean "$cerebrum" ask -m nano "What is 17 plus 25?" | grep -q 42
    echo "$1, $("$python" --version): ok"
}

"$python" -m venv "$work/pip"
clean "$work/pip/bin/pip" install --quiet "cerebrum-cli==$version"
check pip "$work/pip/bin/cerebrum"

"$python" -m venv "$work/tools"
clean "$work/tools/bin/pip" install --quiet uv pipx
clean uv tool install --quiet --python "$python" "cerebrum-cli==$version"
check uv
clean uv tool uninstall --quiet cerebrum-cli
clean pipx install --quiet --python "$python" "cerebrum-cli==$version"
check pipx
clean pipx uninstall cerebrum-cli
