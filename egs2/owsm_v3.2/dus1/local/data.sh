#!/usr/bin/env bash
# Makes data/{dev,test_clean,test_other} of LibriSpeech and data/train_owsm. Options go to
# prepare_owsm.
set -euo pipefail
. ./path.sh
. ./db.sh

python3 -m espnet_dus prepare_librispeech --corpus "${LIBRISPEECH}" \
    --sets dev test_clean test_other
python3 -m espnet_dus pydoc_text --out data/perplexity/pydoc.txt
read -r -a directories <<< "${OWSM}"
[ "${#directories[@]}" -gt 0 ] \
    || { echo "local/data.sh: error: name OWSM's data directories in db.sh" >&2 && exit 1; }
python3 -m espnet_dus prepare_owsm --data_dirs "${directories[@]}" \
    --out_dir data/train_owsm --held_out data/dev data/test_clean data/test_other "$@"
