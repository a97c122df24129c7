"""Measures speed: variants of a setting side by side."""
