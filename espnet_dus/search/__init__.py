"""Search: from a trained model to transcripts."""
