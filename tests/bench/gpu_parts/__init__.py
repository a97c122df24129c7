"""The parts of `tests/bench/gpu.py`: one file a slice, and what they share."""
