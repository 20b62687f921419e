"""Data in shards (lhotse Shar), and training that reads it as a stream."""
