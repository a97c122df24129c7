"""Where models live: on disk, or in the cache that all Hugging Face libraries share.

`cfgen.hub.reference` finds a model there and never touches the network; `cfgen.hub.listing` asks
the hub what a model consists of and `cfgen.hub.pull` fetches it, and nothing else of cfgen does;
`cfgen.hub.cache` lists, checks and removes what was fetched.
"""

from cfgen.hub.reference import Reference, locate, parse_reference

__all__ = ["Reference", "locate", "parse_reference"]
