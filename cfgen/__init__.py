"""cfgen renders long videos from text with causal diffusion models, chunk by chunk."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

__all__ = ["CfgenError", "Plan", "RenderConfig", "__version__", "build_render", "load", "make_plan"]

_HOMES = {
    "CfgenError": "cfgen.errors",
    "Plan": "cfgen.timeline",
    "RenderConfig": "cfgen.config.schema",
    "build_render": "cfgen.pipeline.build",
    "load": "cfgen.config.loader",
    "make_plan": "cfgen.timeline",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `import cfgen` stays free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfgen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
