"""The film world: a procedural world of shots, what is said of it, and what can be seen of it."""
