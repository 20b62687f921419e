#!/usr/bin/env bash
# Makes data/{train_nodev,train_dev,test}, ESPnet's split, and a text for perplexity.
# Options go to prepare_an4.
set -euo pipefail
. ./path.sh
. ./db.sh

url=http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz
python3 -m espnet_dus prepare_an4 --corpus "${AN4:-${url}}" --num_dev 100 "$@"
python3 -m espnet_dus pydoc_text --out data/perplexity/pydoc.txt
