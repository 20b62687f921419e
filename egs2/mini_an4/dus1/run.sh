#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train \
    --valid_set train_dev \
    --test_sets "seen test" \
    --feats_type tokens \
    --speech_tokenizer logmel \
    --tokenizer_args "--num_clusters 50" \
    --ctc_token_type none \
    --dus_config conf/train_dus.yaml \
    --inference_config conf/decode_dus.yaml \
    --inference_dus_model train.acc.ave.pth \
    --perplexity_text data/perplexity/pydoc.txt \
    --text_limit 2 \
    "$@"
