"""What lies between a block's matrix products, in few passes over memory: each row is read once and leaves in FP8."""
