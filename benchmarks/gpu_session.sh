#!/usr/bin/env bash
# All that only a GPU can say, in about four minutes and without a network: do the kernels end where
# the reference does, what does a step cost, what does training need, and does it learn?
#
#   benchmarks/gpu_session.sh [FOLDER]     records and logs go to FOLDER (default: gpu_session)
#
# Each part has a limit (together six minutes) and may fail without stopping the others, as where a package is missing. The
# tables come last. What it measured goes into benchmarks/results by hand, with its commit.
set -u
cd "$(dirname "$0")/.."
OUT=${1:-gpu_session}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=true
FAILED=()

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; then
        echo "$name: done in $((SECONDS - began)) s"
    else
        echo "$name: exit status $? after $((SECONDS - began)) s, see $OUT/$name.log"
        tail -5 "$OUT/$name.log"
        FAILED+=("$name")
    fi
}

$PYTHON - <<'END' || exit 1
import torch
if not torch.cuda.is_available():
    raise SystemExit("gpu_session.sh needs a GPU, and torch sees none.")
import importlib.metadata as found
def version(name):
    try:
        return found.version(name)
    except found.PackageNotFoundError:
        return "missing"
names = ("torch", "triton", "transformers", "accelerate", "tokenizers", "pytest", "hypothesis")
print(torch.cuda.get_device_name(), *[f"{name} {version(name)}" for name in names], sep=", ")
END

# The texts that the last part reads come first: nothing runs beside what is timed.
[ -e "$OUT/texts/train.txt" ] ||
    part texts 20 $PYTHON benchmarks/python_text.py --out "$OUT/texts" --limit 24000000
part tests 70 $PYTHON -m pytest -m gpu -q -p no:cacheprovider tests/optim/test_gpu.py tests/step/test_no_sync.py
part step_time 45 $PYTHON benchmarks/step_time.py --rounds 15 --only 'fused|triton|foreach' --out "$OUT/step_time"
part step_time_1b 45 $PYTHON benchmarks/step_time.py --size 1b --dtype bfloat16 --rounds 7 \
    --only 'fused|triton' --out "$OUT/step_time_1b"
part spectral_step 30 $PYTHON benchmarks/spectral_step.py --layers 12 --only 'Muon|foreach|triton' --training \
    --out "$OUT/spectral_step"
part memory 60 $PYTHON benchmarks/training_memory.py --device cuda --layers 22 --width 2048 --dtype bfloat16 \
    --way adamw --way fromage --way 'fromage inside' --way fromage_spectral --out "$OUT"
part learning 90 $PYTHON benchmarks/quality.py --task gpt2 --device cuda --steps 200 --batches 4 \
    --train_file "$OUT/texts/train.txt" --valid_file "$OUT/texts/valid.txt" \
    --optim adamw:lr=6e-4 --optim fromage_spectral --optim fromage:step_in_backward=true --out "$OUT/learning"

for page in "$OUT"/*.md; do
    [ -e "$page" ] || continue
    echo
    grep -E '^(# |\|)' "$page"
done
echo
[ ${#FAILED[@]} -eq 0 ] && echo "All parts ended well." || echo "Failed: ${FAILED[*]}"
exit ${#FAILED[@]}
