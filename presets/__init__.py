"""Presets and the embedded model, as package data; installed as `cfgen.presets`."""
