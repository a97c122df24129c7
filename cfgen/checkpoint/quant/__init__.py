"""What the tensors of a quantized layer mean."""
