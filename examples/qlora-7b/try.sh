#!/bin/bash
# A server and one client on this machine: try.sh prefs.jsonl. DEVICE and DTYPE may be set.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=${OUT:-runs/qlora-7b}
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

fedpdpo-server --config "$here/server.yaml" --port "${PORT:-50051}" --min-clients 1 \
  ${MODEL:+--model "$MODEL"} ${ROUNDS:+--rounds "$ROUNDS"} --state-dir "$out/server" &
fedpdpo-client --config "$here/client.yaml" --server "localhost:${PORT:-50051}" --client-id one \
  ${DEVICE:+--device "$DEVICE"} ${DTYPE:+--dtype "$DTYPE"} --data "$1" --state-dir "$out/client"
wait
fedpdpo export --state-dir "$out/client" --out "$out/model"
