"""Models made elsewhere (ONNX, Keras, weights of PyTorch): to a step model, proved against the original."""
