#!/bin/sh
# Forward and backward in bfloat16, where this library computes in float32 and rounds once.
set -eu
cd "$(dirname "$0")/.."
exec relpos bench attention --dtype bfloat16 --no-forward --no-decode --lengths 2048,4096 "$@"
