"""cfgen renders long videos from text with causal diffusion models, chunk by chunk.

`cfgen.pipeline.api` tells how a program uses it.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "CfgenError": "cfgen.errors",
    "RenderConfig": "cfgen.config.schema",
    "RenderJob": "cfgen.pipeline.job",
    "Rendering": "cfgen.pipeline.rendering",
    "batch": "cfgen.pipeline.api",
    "branch": "cfgen.pipeline.api",
    "decode": "cfgen.pipeline.api",
    "inspect": "cfgen.pipeline.api",
    "plan": "cfgen.pipeline.api",
    "render": "cfgen.pipeline.api",
    "resume": "cfgen.pipeline.api",
    "retry": "cfgen.pipeline.api",
    "score": "cfgen.scoring.api",
    "undo_retry": "cfgen.pipeline.api",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `import cfgen` stays free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfgen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
