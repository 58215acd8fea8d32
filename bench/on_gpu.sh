#!/usr/bin/env bash
# Check, profile and time saefast on a rented GPU, within a budget of seconds.
#
#   bash bench/on_gpu.sh --commit $HASH --budget 300 install smoke checks profile
#   bash bench/on_gpu.sh --commit $HASH --budget 420 install smoke checks memcheck tiles ncu
#   bash bench/on_gpu.sh --commit $HASH --budget 570 install smoke times:C2 times:C1 times:mid
#   bash bench/on_gpu.sh --commit $HASH --budget 300 install peers:C2 peers:C1 decodes end_to_end
#
# Results: gpu.json, summary.txt and log.tgz in $OUT (default build/gpu). All parts and options:
# python -m bench.gpu --help. A wheel in .whl/ is installed, or else the checkout is built; kernels
# in .tcache/ (python -m bench.rehearse --cache .tcache) need not be compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
# nvcc, ncu and compute-sanitizer are often installed, but not on PATH.
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
export PYTHONPATH="$PWD/build/on_gpu${PYTHONPATH:+:$PYTHONPATH}"
if [[ -d .tcache ]]; then
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/.tcache}"
fi

budget=
for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --budget ]]; then
        next=$((i + 1))
        budget=${!next}
    fi
done

# Parts end by themselves in time; this ends what does not.
guard=()
if [[ -n $budget ]]; then
    guard=(timeout -k 5 "$budget")
fi
exec "${guard[@]}" "${PYTHON:-python3}" -m bench.gpu "$@"
