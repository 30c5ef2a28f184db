"""Converts models made elsewhere (ONNX, Keras, weights of PyTorch) to step models. Needs onnx (extra `import`)."""
