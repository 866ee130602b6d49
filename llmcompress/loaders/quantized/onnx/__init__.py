"""ONNX files of causal models: their weights, which go into the graph of the class that they belong to."""
