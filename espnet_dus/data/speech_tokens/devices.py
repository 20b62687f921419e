"""Where encoders run: the processes that compute tokens share the GPUs or the CPU."""

import os

import torch

JOBS_PER_GPU = 4  # some read audio while others compute


def device_of_process() -> str:
    """Return where a process of several computes: the GPUs in turn, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.getpid() % torch.cuda.device_count()}"


def num_jobs(nj: int) -> int:
    """Return how many of `nj` processes to start, each of which loads an encoder."""
    if not torch.cuda.is_available():
        return nj
    return min(nj, JOBS_PER_GPU * torch.cuda.device_count())
