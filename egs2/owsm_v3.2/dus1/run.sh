#!/usr/bin/env bash
# The paper's setting: English ASR of OWSM v3.2, OpusLM's speech tokens, cross-entropy,
# greedy search on LibriSpeech's test sets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train_owsm \
    --valid_set dev \
    --test_sets "test_clean test_other" \
    --feats_type tokens_shar \
    --speech_tokenizer opuslm \
    --ctc_token_type none \
    --min_wav_duration 2.99 \
    --max_wav_duration 30.01 \
    --base_lm HuggingFaceTB/SmolLM2-360M \
    --dus_config conf/train_dus.yaml \
    --inference_config conf/decode_dus.yaml \
    --perplexity_text data/perplexity/pydoc.txt \
    "$@"
