"""History to events: reading files and topics, sorting by key and time, splitting. Needs neither torch nor onnx."""
