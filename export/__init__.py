"""From a checkpoint to a complete Triton model repository: `python -m export CHECKPOINT --target cpu --out DIR`."""
