# Sourced by tests.sh and examples.sh: puts first on PATH a Python that has imprint (this working tree, editable) and the
# tested versions of all it needs. That is the active virtual environment, or else .venv beside setup.py, made when it is
# missing. Installing happens once, and again when setup.py, the version or constraints.txt change.
# PYTHON=/path/to/python chooses the interpreter that .venv is made with. Nothing but Python and pip is needed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

stop() {
    printf '\n%s\n' "$@" >&2
    exit 1
}

find_python() { # prints the first interpreter that is new enough
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.10 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    stop "imprint needs Python 3.10 or newer and found none on PATH." \
        "Install one, or name it: PYTHON=/path/to/python $0"
}

has_pip() { [ -x "$1" ] && "$1" -m pip --version >/dev/null 2>&1; }

make_venv() { # Debian's python3 has no ensurepip: there the venv gets its pip from the pip outside
    local python
    python="$(find_python)"
    echo "making $ROOT/.venv with $python" >&2
    "$python" -m venv --clear "$ROOT/.venv" >/dev/null 2>&1 && return
    "$python" -m venv --clear --without-pip "$ROOT/.venv" >/dev/null 2>&1 &&
        "$python" -m pip --python "$ROOT/.venv/bin/python" install --quiet pip && return
    stop "$python could not make a virtual environment with pip in it." \
        "Install its venv module (on Debian and Ubuntu: apt install python3-venv) or a newer pip," \
        "or activate a virtual environment of your own, and call this again."
}

if [ -z "${VIRTUAL_ENV:-}" ]; then
    export VIRTUAL_ENV="$ROOT/.venv"
    bin="$VIRTUAL_ENV/bin"
    [ -d "$VIRTUAL_ENV/Scripts" ] && bin="$VIRTUAL_ENV/Scripts"
    has_pip "$bin/python" || make_venv || exit 1
    [ -d "$VIRTUAL_ENV/Scripts" ] && bin="$VIRTUAL_ENV/Scripts"
    export PATH="$bin:$PATH"
fi
has_pip "$(command -v python)" || stop "The active virtual environment, $VIRTUAL_ENV, has no pip." \
    "Install it there (python -m ensurepip) or leave the environment (deactivate), and call this again."

stamp="$VIRTUAL_ENV/.imprint-installed"
wanted="$ROOT $(cat "$ROOT/setup.py" "$ROOT/imprint/_version.py" "$ROOT/constraints.txt" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing imprint and the tested versions into $VIRTUAL_ENV (the first time, a few minutes)" >&2
    # torch first and by itself: its wheel is the one that differs between machines
    python -m pip install -qq --constraint "$ROOT/constraints.txt" torch
    python -m pip install -qq --constraint "$ROOT/constraints.txt" --editable "$ROOT[test,plots,tensorboard]"
    printf '%s\n' "$wanted" >"$stamp"
fi
