# Where the corpora are. An environment variable of the same name wins.
# shellcheck shell=bash disable=SC2034

# CMU AN4: the directory with etc/ and wav/. Empty: downloaded (64 MB).
AN4="${AN4:-}"

# A few utterances of AN4: the directory with etc/ and wav/, or a tar file of it.
# Empty: taken from the installed espnet package.
MINI_AN4="${MINI_AN4:-}"
