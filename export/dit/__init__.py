"""The DiT's weights: every format they come in, LoRAs, FP8, and what quantisation costs."""
