"""The ONNX backend: a step exported once, then run without torch's dispatch."""
