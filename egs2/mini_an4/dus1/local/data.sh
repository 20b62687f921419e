#!/usr/bin/env bash
# Makes data/{train,train_dev,seen,test} and a text for perplexity. Options go to
# prepare_an4.
set -euo pipefail
. ./path.sh
. ./db.sh

python3 -m espnet_dus prepare_an4 --corpus "${MINI_AN4:-espnet}" --num_dev 1 "$@"
# The training utterances again, as a test set: a model that works has memorized them.
rm -rf data/seen
cp -r data/train data/seen
python3 -m espnet_dus pydoc_text --out data/perplexity/pydoc.txt
