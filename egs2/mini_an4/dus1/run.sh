#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train_nodev \
    --valid_set train_dev \
    --test_sets "train_dev test" \
    --dus_config conf/train_dus.yaml \
    --inference_config conf/decode_dus.yaml \
    --perplexity_text data/perplexity/pydoc.txt \
    "$@"
