#!/usr/bin/env bash
# Everything that is due on a GPU, in under ten minutes: docs/gpu.md says what the figures are held against.
#
#   benches/gpu/all.sh [BINARY] [DEVICE] [FOLDER OF RESULTS]
#
# Needs the program, the driver, CUDA's libraries (PyTorch's wheels will do) and python3; beside that, where they are
# installed: torch, transformers and diffusers for the peers, nsys for a profile. Weights are random and made on the
# spot. Each part has a time limit of its own and may fail without the others; what came of it stands in parts.jsonl, and
# summary.md has the table. LIMIT=SECONDS bounds all of it (570). ONLY="check text-8b" runs these parts alone.
# SMOKE=1 tries all of it out on a processor with tiny shapes.
set -uo pipefail

binary=$(realpath "${1:-target/release/girandole}")
device=${2:-cuda:0}
mkdir -p "${3:-gpu-results}"
results=$(realpath "${3:-gpu-results}")
here=$(cd "$(dirname "$0")" && pwd)
benches=$(dirname "$here")
python=${PYTHON:-python3}
work=$(mktemp -d)
deadline=$((SECONDS + ${LIMIT:-570}))
trap 'rm -rf "$work"' EXIT
: > "$results/parts.jsonl"

# CUDA's libraries out of Python's wheels, wherever they are.
libraries=$("$python" - << 'PY' 2> /dev/null || true
import glob, os, sys
found = [os.path.dirname(path) for base in sys.path for path in glob.glob(os.path.join(base, "nvidia", "*", "lib", "lib*.so*"))]
print(":".join(dict.fromkeys(found)))
PY
)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# part NAME SECONDS COMMAND..: within its time and what is left of all.
part() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS code
  shift 2
  if test -n "${ONLY:-}" && ! [[ " $ONLY " == *" $name "* ]]; then return 0; fi
  if test "$left" -lt 5; then
    echo "{\"part\": \"$name\", \"code\": null, \"seconds\": 0}" >> "$results/parts.jsonl"
    echo "== $name: no time left"
    return 0
  fi
  test "$limit" -le "$left" || limit=$left
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$results/$name.log" 2>&1
  code=$?
  echo "{\"part\": \"$name\", \"code\": $code, \"seconds\": $((SECONDS - start))}" >> "$results/parts.jsonl"
  if test "$code" = 0; then echo "   $((SECONDS - start)) s"; else
    echo "   ended with $code after $((SECONDS - start)) s:"
    tail -n 4 "$results/$name.log" | sed 's/^/   /'
  fi
}

# engine NAME SECONDS ARGUMENTS..: a model alone.
engine() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$binary" bench engine --device "$device" --load-format dummy --json "$results/$name.json" \
    --log-level warn "$@"
}

# peer NAME SECONDS SCRIPT ARGUMENTS..: somebody else's program, whose JSON goes to stdout.
peer() {
  local name=$1 limit=$2 script=$3
  shift 3
  # shellcheck disable=SC2016
  part "$name" "$limit" bash -c 'out=$1; shift; "$@" > "$out"' - "$results/$name.json" "$python" "$benches/peers/$script" "$@"
}

# A picture model's shape, with the tokenizer of the bundled model: prompts are then short words in wrong ids.
picture_shape() {
  cp -R "$benches/shapes/$1" "$work/$1"
  for tokenizer in tokenizer tokenizer_2; do
    test "$1:$tokenizer" = sd15:tokenizer_2 || cp -R "$benches/../models/tiny-sd/tokenizer" "$work/$1/$tokenizer"
  done
}

shapes=$benches/shapes
test -n "${SMOKE:-}" || part card 20 nvidia-smi
part check 120 "$binary" gpu-check --device "$device" --json "$results/check.json"

if test -n "${SMOKE:-}"; then
  tiny() {
    mkdir -p "$work/$1"
    sed -e 's/"hidden_size": [0-9]*/"hidden_size": 128/' -e 's/"intermediate_size": [0-9]*/"intermediate_size": 256/' \
      -e 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 2/' -e 's/"num_attention_heads": [0-9]*/"num_attention_heads": 4/' \
      -e 's/"num_key_value_heads": [0-9]*/"num_key_value_heads": 2/' -e 's/"head_dim": [0-9]*/"head_dim": 32/' \
      -e 's/"vocab_size": [0-9]*/"vocab_size": 1024/' -e 's/"bos_token_id": [0-9]*/"bos_token_id": 1/' \
      -e 's/"eos_token_id": [0-9]*/"eos_token_id": 2/' "$shapes/$1/config.json" > "$work/$1/config.json"
  }
  for name in llama-3.1-8b llama-3.2-1b qwen3-4b; do tiny "$name"; done
  text=$work
  levels="--rows 1,3,5 --prefill 64 --context 32 --steps 4 --repeats 2"
  few_levels=$levels
  peer_levels="--rows 1,3,5 --prompt 32 --new 8 --prefill 64 --threads 1"
  dtype=f32
  streams="--streams 4 --long 600 --new 12000 --before 0.3"
  serve="--batch-size 8 --max-context 16384 --kv-cache-tokens 81920 --step-budget-ms 20"
  pictures="--rows 1,2 --steps 2 --point-seconds 1 --size 64x64"
  large_pictures=$pictures
  picture_peer="--rows 1,2 --steps 2 --point-seconds 1 --size 64x64"
  large_picture_peer=$picture_peer
  gguf="--width 256 --feed-forward 512 --layers 2 --vocabulary 1024"
  picture_dtype=f32
  for name in sd15 sdxl; do cp -R "$benches/../models/tiny-sd" "$work/$name"; done
else
  text=$shapes
  levels="--rows 1,8,32,64,256 --prefill 512,2048 --context 128 --steps 24 --repeats 3 --kv-cache-tokens 98304"
  few_levels="--rows 1,32,256 --prefill 2048 --context 128 --steps 24 --repeats 3 --kv-cache-tokens 98304"
  peer_levels="--rows 1,32,256 --prompt 128 --new 96 --prefill 2048"
  dtype=bf16
  streams="--streams 32 --long 8192 --new 3000 --before 2"
  serve="--batch-size 40 --max-context 10240 --kv-cache-tokens 131072"
  pictures="--rows 1,2,8,16 --point-seconds 4 --size 512x512"
  large_pictures="--rows 1,2,4,8 --point-seconds 5 --size 1024x1024"
  picture_peer="--rows 1,2,8,16 --point-seconds 4 --size 512x512"
  large_picture_peer="--rows 1,2,4,8 --point-seconds 5 --size 1024x1024"
  gguf=""
  picture_dtype=f16
  picture_shape sd15
  picture_shape sdxl
fi

# The lists of arguments above have to be split.
# shellcheck disable=SC2086
{
  engine text-8b 100 --model "$text/llama-3.1-8b/config.json" --dtype "$dtype" $levels
  peer peer-text-8b 110 transformers_engine.py "$text/llama-3.1-8b" --device "$device" --dtype "$dtype" $peer_levels
  part long-prompt 70 "$python" "$here/long_prompt.py" --json "$results/long-prompt.json" $streams -- \
    "$binary" serve --device "$device" --load-format dummy --model "text=$text/llama-3.1-8b/config.json" --dtype "$dtype" \
    --prefix-cache-tokens 0 --openai-grace-ms 0 --log-level warn $serve
  engine sd15 45 --model "$work/sd15" --dtype "$picture_dtype" $pictures
  peer peer-sd15 45 diffusers_engine.py "$work/sd15" --dummy --device "$device" --dtype "$picture_dtype" $picture_peer
  engine sdxl 60 --model "$work/sdxl" --dtype "$picture_dtype" $large_pictures
  peer peer-sdxl 60 diffusers_engine.py "$work/sdxl" --dummy --device "$device" --dtype "$picture_dtype" $large_picture_peer
  part gguf-file 40 "$python" "$here/random_gguf.py" "$work/random.gguf" $gguf
  part gguf 40 "$binary" bench engine --device "$device" --model "$work/random.gguf" --json "$results/gguf.json" \
    --log-level warn $few_levels
  engine text-1b 40 --model "$text/llama-3.2-1b/config.json" --dtype "$dtype" $few_levels
  engine text-4b 50 --model "$text/qwen3-4b/config.json" --dtype "$dtype" $few_levels
  if command -v nsys > /dev/null; then
    part profile 60 nsys profile --force-overwrite=true --output "$results/profile" --stats=true "$binary" bench engine \
      --device "$device" --load-format dummy --model "$text/llama-3.1-8b/config.json" --dtype "$dtype" --rows 1,32 \
      --prefill 2048 --steps 8 --repeats 1
  fi
}
"$python" "$here/summary.py" "$results" | tee "$results/summary.md"
