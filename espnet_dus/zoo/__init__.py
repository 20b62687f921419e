"""Trained models as files: packed, published, fetched again."""

TAG = "tag"  # in the directory of a fetched model: what it was fetched by
