"""Corpora: download and preparation as Kaldi data directories (stage 1)."""
