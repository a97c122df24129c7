"""Triton kernels, installed as `cfgen.kernels`; there are none yet."""
