#!/usr/bin/env bash
# Makes LibriSpeech's data directories, then the shards of the other corpora in turn. On a
# cluster, run the first stage, then local/corpus.sh for all corpora in parallel.
set -euo pipefail

# shellcheck disable=SC2034 # utils/parse_options.sh reads it
help_message="Usage: $0 [--stage N] [--stop_stage N] [--corpora NAMES] [--nj N]
  1: data/{train_960,dev,...} of LibriSpeech   2: dump/shar/<corpus> of the others"
stage=1
stop_stage=2
corpora="mls voxpopuli tedlium3 commonvoice"
nj=8
# shellcheck source=../utils/parse_options.sh
. utils/parse_options.sh
. ./path.sh
. ./db.sh

if [ "${stage}" -le 1 ] && [ "${stop_stage}" -ge 1 ]; then
    python3 -m espnet_dus prepare_librispeech --corpus "${LIBRISPEECH}" --nj "${nj}"
    python3 -m espnet_dus pydoc_text --out data/perplexity/pydoc.txt
fi
if [ "${stage}" -le 2 ] && [ "${stop_stage}" -ge 2 ]; then
    for corpus in ${corpora}; do
        local/corpus.sh "${corpus}" "${nj}"
    done
fi
