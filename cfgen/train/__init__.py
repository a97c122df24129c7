"""Training recipes, the film world and its probes: nothing that a render needs."""
