"""Files of tensors: opened, bounded, read."""
