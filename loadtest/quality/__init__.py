"""What the lossy options cost in quality and bring in speed, against the full-precision baseline."""
