"""Discrete-event simulator of the autoscaled fleet: arrivals, cold starts, scaling rules, spot losses, resume."""
