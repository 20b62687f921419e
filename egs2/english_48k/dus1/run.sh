#!/usr/bin/env bash
# Training uses the mix, and CTC units come from all its transcripts. The Kaldi-style
# training set is LibriSpeech: feature statistics come from it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./dus.sh \
    --lang en \
    --train_set train_960 \
    --valid_set dev \
    --test_sets "test_clean test_other dev_clean dev_other" \
    --feats_type shar \
    --train_shards conf/mix.yaml \
    --max_wav_duration 30 \
    --base_lm HuggingFaceTB/SmolLM2-1.7B \
    --dus_config conf/tuning/ours/train_dus_1.7b_encoder.yaml \
    --inference_config conf/decode_dus.yaml \
    --perplexity_text data/perplexity/pydoc.txt \
    "$@"
