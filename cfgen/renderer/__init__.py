"""Rendering: the plan, the loop, its events and the writer."""
