"""Training: ESPnet's Trainer with resume, preemption and throughput."""
