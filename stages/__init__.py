"""What the Python models of the repository share: input checks, run directory, settings, artifacts, runtimes, metrics."""
