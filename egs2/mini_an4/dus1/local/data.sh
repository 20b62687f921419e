#!/usr/bin/env bash
# Makes data/{train_nodev,train_dev,test} and a text for perplexity.
set -euo pipefail
. ./path.sh
. ./db.sh

python3 -m espnet_dus.bin.dus_prepare_an4 --corpus "${MINI_AN4:-espnet}" --num_dev 1
python3 -m espnet_dus.bin.dus_pydoc_text --out data/perplexity/pydoc.txt
