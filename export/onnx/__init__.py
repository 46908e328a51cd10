"""The networks as ONNX graphs, and the proof that a written graph computes what PyTorch computes."""
