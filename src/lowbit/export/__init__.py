"""From a quantized model to an ONNX file that provably behaves like it."""
