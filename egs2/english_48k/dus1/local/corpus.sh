#!/usr/bin/env bash
# Makes dump/shar/<corpus>; a second run resumes. Needs LibriSpeech's data/, whose
# development and test speakers and sentences are left out.
# Usage: local/corpus.sh CORPUS [NUMBER_OF_PROCESSES]
set -euo pipefail
. ./path.sh
. ./db.sh

corpus=${1:?a corpus, such as mls}
nj=${2:-8}
case ${corpus} in
    mls) place=${MLS} ;;
    voxpopuli) place=${VOXPOPULI} ;;
    tedlium3) place=${TEDLIUM3} ;;
    commonvoice) place=${COMMONVOICE} ;;
    gigaspeech) place=${GIGASPEECH} ;;
    peoples_speech) place=${PEOPLES_SPEECH} ;;
    *) echo "local/corpus.sh: error: unknown corpus '${corpus}'" >&2 && exit 1 ;;
esac
# MLS is published as FLAC and, smaller, as Opus.
name=${corpus}
if [ "${corpus}" = mls ] && [ -d "${place}/mls_english_opus" ]; then name=mls_opus; fi

python3 -m espnet_dus prepare_corpus --corpus "${name}" --corpus_dir "${place}" \
    --out_dir "dump/shar/${corpus}" --manifest_dir "data/manifests/${corpus}" \
    --held_out data/dev data/test_clean data/test_other --nj "${nj}" \
    --max_bad_utterances 1000
