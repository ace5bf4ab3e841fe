#!/bin/sh
# Image models on a GPU: what the engine gives, and what batching gives over HTTP.
#
#   benches/gpu/images.sh [BINARY] [DEVICE] [FOLDER OF RESULTS]
#
# Weights are random, in the shapes of Stable Diffusion 1.5 and XL: speed does not depend on their values. JSON goes
# to the folder, tables and a line for each load to stdout. SMOKE=1 tries the script out on a processor, with the
# bundled model. Needs curl and xargs.
set -eu

binary=${1:-target/release/girandole}
device=${2:-cuda:0}
results=${3:-bench-results}
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2> /dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$results"

# A model's shape, with the tokenizer of the bundled model: prompts are then short words in wrong ids, as good as any.
shape() {
  cp -R "$here/shapes/$1" "$work/$1"
  for tokenizer in tokenizer tokenizer_2; do
    test "$1:$tokenizer" = sd15:tokenizer_2 || cp -R "$here/../models/tiny-sd/tokenizer" "$work/$1/$tokenizer"
  done
}

# engine NAME ARGUMENTS: the model alone.
engine() {
  name=$1
  shift
  echo "== engine: $name"
  "$binary" bench engine --device "$device" --json "$results/engine-$name.json" "$@"
}

# load NAME CLIENTS REQUESTS EDGE ARGUMENTS: pictures over HTTP, of 15 to 30 steps, from so many clients that each
# send their next request when the last has ended.
load() {
  name=$1 clients=$2 requests=$3 edge=$4
  shift 4
  "$binary" serve --device "$device" --port 0 --batch-size 8 --log-level warn "$@" > "$work/said" 2> "$work/log" &
  server=$!
  url=
  while test -z "$url"; do
    kill -0 "$server" 2> /dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 1
    url=$(sed -n 's/^listening on //p' "$work/said")
  done
  until curl -sf "$url/health/ready" > /dev/null; do
    kill -0 "$server" 2> /dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 1
  done
  draw='curl -sSf -o /dev/null -H "content-type: application/json" "$0/sdapi/v1/txt2img" -d
    "{\"prompt\": \"a picture of number $2\", \"steps\": $((15 + $2 * 7 % 16)), \"seed\": $2, \"cfg_scale\": 7.5,
    \"width\": $1, \"height\": $1}"'
  draw=$(echo "$draw" | tr '\n' ' ')
  # Once without a clock.
  seq 1 "$clients" | xargs -P "$clients" -n 1 sh -c "$draw" "$url" "$edge"
  start=$(date +%s.%N)
  seq 1 "$requests" | xargs -P "$clients" -n 1 sh -c "$draw" "$url" "$edge"
  end=$(date +%s.%N)
  echo "$name $clients $requests $start $end" | awk '{
    printf "%s: %d clients, %d pictures in %.1f s, %.2f pictures/s\n", $1, $2, $3, $5 - $4, $3 / ($5 - $4) }' |
    tee -a "$results/loads.txt"
  kill "$server"
  wait "$server" || true
  server=
}

# A shell's functions share their variables: these have names of their own.
loads() {
  model=$1 side=$2 pictures=$3
  shift 3
  echo "== loads: $model"
  load "$model-one-by-one" 1 $((pictures / 4)) "$side" "$@" --batching continuous
  load "$model-dynamic" 8 "$pictures" "$side" "$@" --batching dynamic
  load "$model-continuous" 8 "$pictures" "$side" "$@" --batching continuous
}

if test -n "${SMOKE:-}"; then
  engine tiny-sd --model tiny-sd --rows 1,2 --steps 2
  loads tiny-sd 64 16 --model tiny-sd
  exit
fi

command -v nvidia-smi > /dev/null &&
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv | tee "$results/gpu.csv"
shape sd15
shape sdxl
dummy="--load-format dummy --model"
for dtype in f16 f32; do
  engine "sd15-$dtype" $dummy "$work/sd15" --dtype "$dtype" --rows 1,2,4,8,16,32 --size 512x512
  engine "sdxl-$dtype" $dummy "$work/sdxl" --dtype "$dtype" --rows 1,2,4,8,16 --size 1024x1024
done
loads sd15 512 64 $dummy "$work/sd15" --dtype f16
loads sdxl 1024 32 $dummy "$work/sdxl" --dtype f16
