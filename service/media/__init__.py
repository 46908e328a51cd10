"""Pictures and clips that come with a request: how they arrive, and what of them is kept.

Nothing that was sent reaches a decoder of the gateway, the worker or Triton: a process of its own, with limits of time and
memory, turns it into a PNG or an H.264 clip of bounded size, and only that is stored.
"""
