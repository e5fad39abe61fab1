#!/bin/bash
# Plays coordinator, board and a member for each file of preferences: try.sh st-mary.jsonl charite.jsonl
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=${OUT:-runs/hospitals}
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

fedpdpo certs init --dir "$out/certs"
fedpdpo certs server --dir "$out/certs" --host localhost
fedpdpo certs operator --dir "$out/certs" --name board
fedpdpo-server --config "$here/server.yaml" --host 127.0.0.1 --port "${PORT:-50051}" \
  ${MODEL:+--model "$MODEL"} ${ROUNDS:+--rounds "$ROUNDS"} --min-clients $# \
  --tls "$out/certs/server/server" --state-dir "$out/server" &
for data; do
  name=$(basename "${data%.*}")
  fedpdpo certs client --dir "$out/certs" --name "$name"
  openssl rand -hex 32 > "$out/$name.key"
  fedpdpo-client --config "$here/client.yaml" --server "localhost:${PORT:-50051}" \
    --tls "$out/certs/client/$name" --client-id "$name" --data "$data" \
    --state-key-file "$out/$name.key" --state-dir "$out/$name" &
done
fedpdpo events --server "localhost:${PORT:-50051}" --tls "$out/certs/operator/board" --follow || true
wait
for data; do
  name=$(basename "${data%.*}")
  fedpdpo export --state-dir "$out/$name" --state-key-file "$out/$name.key" --out "$out/$name-model"
done
