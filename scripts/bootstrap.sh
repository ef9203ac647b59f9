# Sourced by every script: finds Python, makes .venv on first use, installs the pins, sets ROOT and PYTHON.
# With YUE_DEV=1 the test and lint tools are installed as well. Says what it does on stderr only.

ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"
export PYTHONPATH="$ROOT"

_say() { echo "$*" >&2; }
_stop() { _say "$*"; exit 1; }

_suits() { # a Python that this project runs on
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

_find_python() { # prints the first suitable Python that can make a virtual environment
    local name without_venv=""
    for name in python3 python3.13 python3.12 python3.11; do
        _suits "$name" || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$name"
            return
        fi
        without_venv="${without_venv:-$name}"
    done
    if [ -n "$without_venv" ]; then
        local version
        version="$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        _stop "$without_venv cannot make virtual environments; run: sudo apt-get install python$version-venv"
    fi
    _stop "Python 3.11, 3.12 or 3.13 is needed, and $(python3 --version 2>/dev/null || echo none) was found; install one, for example: sudo apt-get install python3 python3-venv"
}

_installed() { # is requirements file $1 what the environment holds?
    cmp -s "$ROOT/$1" "$VENV/installed-$1"
}

_install() { # install requirements file $1; pip's own progress on a terminal, silence elsewhere
    _installed "$1" && return
    local quiet=--quiet
    [ -t 2 ] && quiet=
    "$PYTHON" -m pip install $quiet --disable-pip-version-check -r "$ROOT/$1" >&2 ||
        _stop "The installation of $1 did not finish; check the network and run the same command again."
    cp "$ROOT/$1" "$VENV/installed-$1"
}

_prepare() {
    local base
    base="$(_find_python)" || exit 1
    mkdir -p "$VENV"
    # Two scripts started at once: the second waits. The lock lives as long as descriptor 9 of this shell.
    exec 9>"$VENV/lock"
    "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! { _suits "$PYTHON" && "$PYTHON" -m pip --version >/dev/null 2>&1; }; then
        _say "First run: making $VENV with $("$base" --version)."
        rm -rf "$VENV/bin" "$VENV/lib" "$VENV/lib64" "$VENV/pyvenv.cfg" "$VENV"/installed-*
        "$base" -m venv "$VENV" || _stop "$VENV could not be made; see the message above."
    fi
    _installed requirements.txt ||
        _say "Installing the pinned packages of requirements.txt; a first installation downloads about 3 GB and takes some minutes."
    _install requirements.txt
    [ -z "${YUE_DEV:-}" ] || _install requirements-dev.txt
    exec 9>&-
}

if ! { [ -x "$PYTHON" ] && _installed requirements.txt && { [ -z "${YUE_DEV:-}" ] || _installed requirements-dev.txt; }; }; then
    _prepare
fi
