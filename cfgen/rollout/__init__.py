"""Chunk after chunk: shared by render and training."""
