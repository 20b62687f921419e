"""What an adapted LM is still worth on text: perplexity, tasks, paired comparison."""
