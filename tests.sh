#!/usr/bin/env bash
# Everything a contributor needs in one command: set-up, format, lint, types, imports, doctests, tests.
# Arguments go to pytest and leave the checks out:   ./tests.sh tests/data -k atomic
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/setup_env.sh"
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step() {
    local name="$1"
    shift
    printf '\n== %s\n' "$name"
    "$@" || stop "$name failed: $*${fix:+ (to mend: $fix)}"
}

if [ $# -eq 0 ]; then
    fix="python -m ruff format ." step "format" python -m ruff format --check .
    fix="python -m ruff check --fix ." step "lint" python -m ruff check .
    step "types" python -m mypy
    step "imports between rooms" lint-imports --no-logo
fi
together=()  # everything takes long: side by side, on as many cores as there are
[ $# -gt 0 ] || together=(-n auto --dist worksteal)
step "tests" python -m pytest "${together[@]}" "$@"
