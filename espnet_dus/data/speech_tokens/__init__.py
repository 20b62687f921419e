"""Discrete speech tokens: what makes them of audio, and how they are stored."""
