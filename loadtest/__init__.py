"""Load tests of the video service: open-loop load, verdicts, capacity, comparison and soak."""
