"""The processes that render one film, and what they say to each other.

Numbers of a pass go from device to device: NCCL on GPUs, gloo on CPUs. What is said between passes,
and pages for snapshots, go from main memory to main memory by gloo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from cfgen.errors import ProcessLost

LEAD = 0
"""The rank of the process that encodes, decodes, writes, and tells the others what to do."""

PATIENCE = timedelta(days=1)
"""How long a process waits to be told something: the lead may be joining a film of hours."""


class Group:
    """All processes of a render; made in each of them at once.

    Args:
        lead_at: The address and port of the lead, which this process is, and how many there are;
            None where a launcher tells all that.

    Attributes:
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self, *, lead_at: tuple[str, int] | None = None) -> None:
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        with _losses():
            if lead_at is None:
                dist.init_process_group(backend)
            else:
                address, size = lead_at
                dist.init_process_group(
                    backend, init_method=f"tcp://{address}", rank=LEAD, world_size=size
                )
            self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._under_way = 0

    @property
    def is_broken(self) -> bool:
        """Whether something was begun together and left: the others wait in it, and hear nothing.

        gloo sends when the other side receives, so that telling them anything would wait, too.
        """
        return self._under_way > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all do in the block is done to its end, or the group is broken."""
        self._under_way += 1
        yield
        self._under_way -= 1

    @property
    def leads(self) -> bool:
        """Whether this process is the lead."""
        return self.rank == LEAD

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Give each process some rows, and take from each.

        Args:
            rows: [S, ...], contiguous: those for the first process first.
            sent: How many go to each process; they add up to S.
            received: How many come from each.

        Returns:
            [R, ...]: those of the first process first.
        """
        out = rows.new_empty(sum(received), *rows.shape[1:])
        with self.together(), _losses():
            dist.all_to_all_single(_bytes(out), _bytes(rows), list(received), list(sent))
        return out

    def tell(self, message: object) -> None:
        """Have all others hear something; the lead does. Tensors must be in main memory."""
        with self.together(), _losses():
            dist.broadcast_object_list([message], LEAD, self._control)

    def hear(self) -> object:
        """What the lead tells next."""
        told = [None]
        with self.together(), _losses():
            dist.broadcast_object_list(told, LEAD, self._control)
        return told[0]

    def gather(self, part: Tensor) -> list[Tensor] | None:
        """What all processes have, by rank, in main memory: on the lead; None on the others."""
        own = part.cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.leads else None
        with self.together(), _losses():
            bytes_of = None if parts is None else [_bytes(each) for each in parts]
            dist.gather(_bytes(own), bytes_of, LEAD, self._control)
        return parts

    def scatter(self, parts: Sequence[Tensor] | None, like: Tensor) -> Tensor:
        """What the lead has for this process, shaped as `like`; the others give no parts."""
        out = torch.empty_like(like, device="cpu")
        with self.together(), _losses():
            bytes_of = None if parts is None else [_bytes(each.contiguous()) for each in parts]
            dist.scatter(_bytes(out), bytes_of, LEAD, self._control)
        return out

    def close(self) -> None:
        """Leave; whoever waits for this process finds it gone."""
        dist.destroy_process_group()


def is_member() -> bool:
    """Whether this process has a group, of which torch allows one at a time."""
    return dist.is_initialized()


@cache
def joined() -> Group:
    """The processes that a launcher started with this one, which find each other once."""
    return Group()


def _bytes(x: Tensor) -> Tensor:
    """A contiguous tensor as rows of bytes, which every backend carries: [first axis, bytes]."""
    rows = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    return rows.view(torch.uint8)


@contextmanager
def _losses() -> Iterator[None]:
    """What processes do together fails in each of them if one ends: in a sentence.

    Raises:
        ProcessLost: One did.
    """
    try:
        yield
    except RuntimeError as error:
        first = next(iter(str(error).splitlines()), "no reason is told")
        raise ProcessLost(
            f"a process that rendered with this one ended, or cannot be reached: {first}",
            "go on with `cfgen resume`; what the process said stands above",
        ) from error
