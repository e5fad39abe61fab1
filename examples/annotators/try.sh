#!/bin/bash
# Simulates the annotators of a file: try.sh judgements.jsonl
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=${OUT:-runs/annotators}
fedpdpo simulate --config "$here/simulate.yaml" --data "$1" --out "$out" \
  ${MODEL:+--server.model "$MODEL"} ${ROUNDS:+--server.rounds "$ROUNDS"}
