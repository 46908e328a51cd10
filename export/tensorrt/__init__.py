"""BF16 graphs checked against TensorRT's operators, and plans built from them."""
