#!/usr/bin/env bash
# Runs every example and prints one table: example, data, accuracy, backprop's accuracy on the same net, seconds.
#   ./examples.sh                      all of them
#   ./examples.sh --quick              fewer epochs
#   ./examples.sh --data FILE.h5       your own data; DATASETS.md says how they are laid out
#   ./examples.sh NAME ...             only these
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/setup_env.sh"
exec python "$ROOT/examples/run_all.py" "$@"
