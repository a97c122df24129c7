"""How a film goes from one shot to the next: the names that a person sets, in one place.

What each does to memory is said by `rollout.transitions` in words of `protocols.Memory`.
"""

from __future__ import annotations

from typing import Literal

Transition = Literal["continue", "recache", "flush", "cut", "fresh"]
"""What becomes of the memory where a shot begins.

continue  it stays as it is, and only the prompt changes
recache   its newest latent frames are committed again under the new prompt
flush     it keeps its sink and the newest frames
cut       as flush, and the first chunk stands far away in time
fresh     it is emptied
"""

FLUSHED = 2
"""Newest latent frames that stay beside the sink. Source: Infinity-RoPE @ 63d7b84 (arXiv
2511.20649) pipeline/causal_inference.py, whose window of 6 then holds 1 + 2 and the chunk's 3."""

CUT = 42
"""Latent frames that a chunk stands further away in time. Source: as above, where a chunk stands at
45 to 47 instead of 3 to 5 (`transition_from=45, transition_frames=3`)."""
