"""Weights on disk: every layout read, decoded and named into one native state dict, strictly."""
