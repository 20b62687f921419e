"""Evaluation on text: perplexity, tasks, paired comparison with the base LM."""
