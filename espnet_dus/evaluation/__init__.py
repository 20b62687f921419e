"""Evaluation: recognition, text ability, comparison of arms."""
