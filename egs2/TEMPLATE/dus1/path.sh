# shellcheck shell=bash
# The environment of a recipe. Sourced from the recipe's directory, egs2/<corpus>/dus1.

# -P: from an ESPnet checkout, a link leads here (tools/port_to_espnet.sh).
MAIN_ROOT=$(cd -P ../../.. && pwd)
export MAIN_ROOT

"${MAIN_ROOT}/tools/setup.sh" || return 1
. "${DUS_VENV:-${MAIN_ROOT}/tools/venv}/bin/activate"

export PATH="${PWD}/utils:${PATH}"
export PYTHONPATH="${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}"
export PYTHONIOENCODING=UTF-8
# Kaldi tables are sorted by bytes.
export LC_ALL=C

# Many jobs run at once. To let each have more threads: OMP_NUM_THREADS=4 ./run.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# NCCL must not choose a virtual network interface.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker,virbr,vmnet,vboxnet}"

# Since Slurm 22.05 srun, by which several nodes are started, ignores the job's CPUs: the
# processes of all GPUs of a node would share one.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK}}"
fi

if ! command -v nvidia-smi > /dev/null; then
    # On a CPU, glibc hands big activation buffers back to the kernel at every step and
    # faults them in again, which costs several times the computation itself. Buffers of
    # 64 MiB and more (logits over a whole text) do go back: kept, they fragment the heap,
    # and text evaluation grew by 200 MB a window.
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-67108864}"
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-20000000000}"
fi

if [ -f local/path.sh ]; then
    . local/path.sh
fi
