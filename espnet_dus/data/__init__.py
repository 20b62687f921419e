"""From a corpus to the batches of training: data directories, audio, dump."""
