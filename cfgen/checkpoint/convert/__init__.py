"""Files rewritten: converted and quantized."""
