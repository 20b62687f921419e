# shellcheck shell=bash
# How jobs are started: <cmd> [options] [JOB=1:<nj>] <log> <command...>, for instance
#   run_local.py --mem 4G JOB=1:10 echo.JOB.log echo JOB
# where JOB becomes the job's number in the log's name and in the command.
# Options: --gpu N, --mem M, --num_threads N, --name X, --max-jobs-run N.
# train_cmd starts CPU jobs, cuda_cmd training, decode_cmd decoding on CPU.

# "local", "slurm", "sge" (any qsub with queue.pl), "pbs" or "ssh"
cmd_backend="${cmd_backend:-local}"

# The launchers of job schedulers are Kaldi's. They read conf/{slurm,queue,pbs}.conf,
# where the names of partitions and queues must be those of your cluster; ssh.pl reads
# host names from .queue/machines.
kaldi_cmd() {
    local utils
    for utils in "${KALDI_ROOT:-}/egs/wsj/s5/utils" \
        "${ESPNET_ROOT:-}/egs2/TEMPLATE/asr1/utils"; do
        if [ -x "${utils}/$1" ]; then
            export PATH="${PATH}:${utils}"
            export train_cmd="$1" cuda_cmd="$1" decode_cmd="$1"
            return
        fi
    done
    echo "cmd.sh: error: cmd_backend=${cmd_backend} needs Kaldi's $1. Set KALDI_ROOT" \
        "(now '${KALDI_ROOT:-}') to a checkout of Kaldi, or ESPNET_ROOT" \
        "(now '${ESPNET_ROOT:-}') to a checkout of ESPnet" >&2
    return 1
}

case "${cmd_backend}" in
    local)
        export train_cmd=run_local.py cuda_cmd=run_local.py decode_cmd=run_local.py
        ;;
    slurm) kaldi_cmd slurm.pl ;;
    sge) kaldi_cmd queue.pl ;;
    pbs) kaldi_cmd pbs.pl ;;
    ssh) kaldi_cmd ssh.pl ;;
    *)
        echo "cmd.sh: error: cmd_backend=${cmd_backend}: expected local, slurm, sge," \
            "pbs or ssh" >&2
        return 1
        ;;
esac
