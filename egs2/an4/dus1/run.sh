#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train_nodev \
    --valid_set train_dev \
    --test_sets "train_dev test" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type tokens \
    --speech_tokenizer whisper_tiny_en \
    --tokenizer_args "--num_clusters 500 --remove_repeats true" \
    --ctc_token_type none \
    --dus_config conf/train_dus.yaml \
    --inference_config conf/decode_dus.yaml \
    --perplexity_text data/perplexity/pydoc.txt \
    "$@"
