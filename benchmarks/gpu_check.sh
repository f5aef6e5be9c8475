#!/usr/bin/env bash
# Everything that needs a GPU, in one run of under ten minutes and without a network: builds the native libraries, prunes an
# 8B shape, runs the GPU tests and every GPU benchmark. What matters most comes first, and each result is written as it
# comes, so that a run that is cut short has given something.
#
# Usage, from the repository root: benchmarks/gpu_check.sh
#   OUT     folder for logs and JSON results   (default: benchmarks/results)
#   PYTHON  interpreter with torch             (default: python3)
# Exit code: 0 all steps passed, 1 a step failed (the later ones ran all the same), 2 there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
# Libraries and packages come from this checkout, installed or not.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if ! gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0))' 2>"$out/gpu_check.log"); then
    echo "gpu_check: PyTorch ($python) finds no usable GPU; nothing was run:" >&2
    tail -n 1 "$out/gpu_check.log" >&2
    exit 2
fi
name=$(tr -cs 'A-Za-z0-9' '_' <<<"$gpu" | sed 's/^_*//; s/_*$//')
echo "gpu_check: $gpu" | tee "$out/$name.log"

summary=()
failed=0

# step NAME SECONDS COMMAND...: runs it under a time limit, its output on the screen and in the log.
step() {
    local title=$1 limit=$2 start=$SECONDS code
    shift 2
    echo "== $title (at most $limit s): $*" | tee -a "$out/$name.log"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/$name.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) summary+=("passed    $title, $((SECONDS - start)) s") ;;
        124 | 137) summary+=("TIMED OUT $title, after $limit s") ;;
        *) summary+=("FAILED    $title, exit code $code, $((SECONDS - start)) s") ;;
    esac
    [[ $code -eq 0 ]] || failed=1
}

has() { "$python" -c "import $1" 2>/dev/null; }

lacks() { summary+=("LEFT OUT  $1: $2 is not installed"); }

workers=()
has xdist && workers=(-n 8)  # most of the tests' time goes into compiling kernels

# The limits add up to 575 s.
step build 75 "$python" setup.py build_ext --inplace
step backends 20 "$python" -c 'from prunecomp.ops import libraries
reason = libraries.load("prunecomp_cuda").reason
raise SystemExit(reason)'
step bench_engine 120 "$python" -m benchmarks.bench_engine_gpu --out "$out/engine_$name.json"
if has pytest; then
    step tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider "${workers[@]}" tests/ops tests/engine
else
    lacks tests pytest
fi
step bench_ops 80 "$python" -m benchmarks.bench_ops_gpu --out "$out/ops_$name.json"
step bench_layers 100 "$python" -m benchmarks.bench_layers_gpu --out "$out/layers_$name.json"
if command -v compute-sanitizer >/dev/null && has pytest; then
    step sanitizer 60 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q -m gpu -p no:cacheprovider \
        tests/engine/test_gpu_manners.py
else
    lacks sanitizer "compute-sanitizer or pytest"
fi

echo "== gpu_check on $gpu, $SECONDS s"
printf '%s\n' "${summary[@]}"
exit "$failed"
