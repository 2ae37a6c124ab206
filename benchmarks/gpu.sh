#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go and without a network: bench of the 7B shape, then of the 3B shape,
# then the tests that need a CUDA device. Needs python with torch >= 2.11 and transformers >= 5.17; matplotlib for the
# pictures and pytest for the tests, if they are there. Ends in under ten minutes.
#   benchmarks/gpu.sh [--device cuda|cpu] [--shape 7b|3b|tiny] [--out DIR]
# On a machine without a GPU: benchmarks/gpu.sh --device cpu --shape tiny --out /tmp/results
set -euo pipefail
cd "$(dirname "$0")/.."

device=cuda shape=7b out=benchmarks/results
while (($#)); do
  case $1 in
    --device) device=$2 ;;
    --shape) shape=$2 ;;
    --out) out=$2 ;;
    *) sed -n '2,6s/^# *//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done

python=${PYTHON:-python3}
[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
export PYTHONPATH="libs/echo_model/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out"
pictures=0
"$python" -c 'import matplotlib' 2>/dev/null && pictures=1

bench() { # shape, seconds
  local name=$out/echo_model_${device}_$1
  local options=(--device "$device" --shape "$1" --limit "$2" --json "$name.json")
  ((pictures)) && options+=(--png "$name.png")
  "$python" -c "import sys; from echo_model.cli import main; sys.exit(main())" bench "${options[@]}"
}

failed=0
bench "$shape" 300 || failed=1
[[ $shape == 7b ]] && { bench 3b 150 || failed=1; }
if "$python" -c 'import pytest' 2>/dev/null; then
  # The project's pytest settings want plugins that a GPU image may lack.
  timeout 90 "$python" -m pytest -c /dev/null --rootdir . --confcutdir tests/gpu -p no:cacheprovider -q tests/gpu || failed=1
else
  echo "tests/gpu not run: this python has no pytest"
fi
exit $failed
