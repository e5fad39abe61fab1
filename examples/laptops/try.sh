#!/bin/bash
# Plays the host and a client for each file of preferences: try.sh ada.jsonl bea.jsonl
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=${OUT:-runs/laptops}
mkdir -p "$out"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

fedpdpo certs init --dir "$out/certs"
fedpdpo certs server --dir "$out/certs" --host localhost
for data; do
  name=$(basename "${data%.*}")
  fedpdpo token --name "$name" --out "$out/$name.token" --tokens "$out/tokens.txt"
done
fedpdpo-server --config "$here/server.yaml" --host 127.0.0.1 --port "${PORT:-50051}" \
  ${MODEL:+--model "$MODEL"} ${ROUNDS:+--rounds "$ROUNDS"} --min-clients $# \
  --tls "$out/certs/server/server" --tokens "$out/tokens.txt" --state-dir "$out/server" &
for data; do
  name=$(basename "${data%.*}")
  fedpdpo-client --config "$here/client.yaml" --server "localhost:${PORT:-50051}" --tls "$out/certs" \
    --token-file "$out/$name.token" --client-id "$name" --data "$data" --state-dir "$out/$name" &
done
wait
for data; do
  name=$(basename "${data%.*}")
  fedpdpo export --state-dir "$out/$name" --out "$out/$name-model"
done
