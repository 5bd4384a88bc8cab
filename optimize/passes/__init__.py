"""Graph passes: each a function over an ONNX model that changes it in place and returns how often it applied."""
