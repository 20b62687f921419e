# Where the corpora are. An environment variable of the same name wins.
# shellcheck shell=bash disable=SC2034

# CMU AN4: the directory with etc/ and wav/. Empty: downloaded (64 MB).
AN4="${AN4:-}"

# A few utterances of AN4: the directory with etc/ and wav/, or a tar file of it.
# Empty: taken from the installed espnet package.
MINI_AN4="${MINI_AN4:-}"

# LibriSpeech, 960 hours: the directory with train-clean-100 and the like. Empty:
# downloaded (60 GB).
LIBRISPEECH="${LIBRISPEECH:-}"

# The other corpora of egs2/english_48k: each directory as its archives make it, which is
# what lhotse's preparation of the same name takes. Empty: its stage is an error. The
# recipe's README says where to get each.
MLS="${MLS:-}"                        # with mls_english/
VOXPOPULI="${VOXPOPULI:-}"            # with raw_audios/en/
TEDLIUM3="${TEDLIUM3:-}"              # TEDLIUM_release-3, with legacy/
COMMONVOICE="${COMMONVOICE:-}"        # cv-corpus-<release>, with en/
GIGASPEECH="${GIGASPEECH:-}"          # with GigaSpeech.json
PEOPLES_SPEECH="${PEOPLES_SPEECH:-}"  # with train/clean/ and the like

# OWSM v3.2 for egs2/owsm_v3.2: the training data directories that ESPnet's
# egs2/owsm_v3/s2t1 (or egs2/owsm_v3.2/speechlm1) has made, separated by spaces.
OWSM="${OWSM:-}"
