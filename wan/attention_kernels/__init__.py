"""Attention kernels in the Triton language (triton-lang.org), for GPUs; imported only where they run."""
