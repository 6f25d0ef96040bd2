#!/bin/sh
# The figures of docs/results/linear.md, on a machine that does nothing else.
set -eu
cd "$(dirname "$0")/.."
exec relpos bench linear --markdown docs/results/linear.md "$@"
