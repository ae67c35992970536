#!/bin/sh
# Installs cerebrum in .venv, with llama.cpp built for this machine. Needs Python 3.11 or newer. Variables:
#   ACCEL=cuda|metal|vulkan|rpc   builds llama.cpp with this backend, too
#   WHEELS=URL|DIRECTORY   installs llama.cpp from this package index or directory of wheels instead
#   PYTHON=python3.12   the Python of a new .venv
set -eu
: "${ACCEL:=}" "${WHEELS:=}"
[ ! -d "$WHEELS" ] || WHEELS=$(cd "$WHEELS" && pwd)
cd "$(dirname "$0")/.."

fail() {
    echo "error: $1" >&2
    echo " hint: $2" >&2
    exit 1
}

case $ACCEL in '' | cuda | metal | vulkan | rpc) ;;
*) fail "ACCEL is \"$ACCEL\"" "it can be cuda, metal, vulkan or rpc" ;;
esac
if [ -n "$ACCEL" ] && [ -n "$WHEELS" ]; then
    fail "ACCEL builds llama.cpp and WHEELS installs a wheel of it" "use one of them"
fi

python=.venv/bin/python
if [ -x $python ]; then base=$python remove="rm -r .venv && "; else base=${PYTHON:-python3} remove=; fi
needed=$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
"$base" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$needed'.split('.'))))" ||
    fail "Python $needed or newer is needed; $base is $("$base" --version 2>&1)" \
        "install one and run: ${remove}PYTHON=python$needed scripts/setup.sh"
[ -x $python ] || "$base" -m venv .venv
$python -m pip install --quiet --upgrade "pip>=25.1"

if [ -z "$WHEELS" ]; then
    scripts/build.sh "${ACCEL:-cpu}"
else
    # Where WHEELS has none that fits, pip fails instead of building one.
    if [ -d "$WHEELS" ]; then from="--no-index --find-links"; else from=--index-url; fi
    $python -m pip install --quiet --only-binary llama-cpp-python --force-reinstall --no-deps $from "$WHEELS" \
        "$(scripts/build.sh requirement)"
fi
$python -m pip install --quiet --no-compile --editable .
# The path of this checkout may not be ASCII, and before 3.13, Python reads it in the encoding of the locale.
for path in .venv/lib/python*/site-packages/_editable_impl_cerebrum_cli.pth; do
    [ ! -e "$path" ] || echo ../../../.. >"$path"
done
# A wheel may have been built for another processor.
[ -z "$WHEELS" ] || .venv/bin/cerebrum doctor --offline --quiet
rm -f .venv/.installed-*  # what make has installed
touch .venv/.installed
echo "installed; next: source .venv/bin/activate && cerebrum pull"
