"""How good a model is: its scores on a history, metrics with intervals, and baselines. Needs neither torch nor onnx."""
