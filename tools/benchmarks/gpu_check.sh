#!/usr/bin/env bash
# Check a GPU in a few minutes; see gpu_check.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -f "${root}/tools/venv/bin/activate" ]; then
    # shellcheck disable=SC1091
    . "${root}/tools/venv/bin/activate"
fi
export PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"
# tensors of many sizes: without this the allocator's blocks fragment
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
exec python "${root}/tools/benchmarks/gpu_check.py" "$@"
