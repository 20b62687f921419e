#!/usr/bin/env bash
# Makes data/{train_960,dev,dev_clean,dev_other,test_clean,test_other} and a text for
# perplexity. Options go to prepare_librispeech, e.g. --sets.
set -euo pipefail
. ./path.sh
. ./db.sh

python3 -m espnet_dus prepare_librispeech --corpus "${LIBRISPEECH}" "$@"
python3 -m espnet_dus pydoc_text --out data/perplexity/pydoc.txt
