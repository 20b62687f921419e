"""Trained models as files: packed, published, fetched again."""
