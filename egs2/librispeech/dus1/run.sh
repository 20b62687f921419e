#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train_960 \
    --valid_set dev \
    --test_sets "test_clean test_other dev_clean dev_other" \
    --feats_type tokens_shar \
    --speech_tokenizer opuslm \
    --ctc_token_type none \
    --max_wav_duration 30 \
    --base_lm HuggingFaceTB/SmolLM2-360M \
    --dus_config conf/train_dus.yaml \
    --inference_config conf/decode_dus.yaml \
    --perplexity_text data/perplexity/pydoc.txt \
    "$@"
