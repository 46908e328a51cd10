"""Measurements of this project: `python -m loadtest COMMAND`. One room for each kind of them, over one small base."""
