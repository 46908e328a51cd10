"""Speed of the model's parts: ours beside diffusers on the same weights, and each option's share in it."""
