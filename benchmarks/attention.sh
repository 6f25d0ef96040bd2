#!/bin/sh
# The figures of docs/results/attention.md, on a machine that does nothing else.
set -eu
cd "$(dirname "$0")/.."
exec relpos bench attention --markdown docs/results/attention.md "$@"
