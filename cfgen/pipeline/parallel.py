"""One film in several processes: they are started here, or join those that a launcher started."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys

import torch

from cfgen.config.schema import RenderConfig
from cfgen.errors import ProcessLost, SetupError, UsageError
from cfgen.parallel.group import Group, is_member, joined
from cfgen.parallel.launch import Launched, launched
from cfgen.parallel.messages import End

PATIENCE_S = 10
"""Seconds that a process has to end once there is nothing left to do."""

HERE = "127.0.0.1"


class Peers:
    """The processes that render with this one; they are started when first needed.

    Args:
        told: What a launcher tells, where it started all of them.
    """

    def __init__(self, told: Launched | None = None) -> None:
        self._told = told
        self._group: Group | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def joined(self, config: RenderConfig) -> RenderConfig:
        """A configuration whose film is rendered by all processes that a launcher started.

        Raises:
            UsageError: It asks for another number of them.
        """
        told, asked = self._told, config.placement.parallel
        if told is None or asked == told.size:
            return config
        if asked != 1:
            raise UsageError(
                f"the launcher started {told.size} processes, and --parallel asks for {asked}",
                "leave --parallel out, or start as many",
            )
        placement = dataclasses.replace(config.placement, parallel=told.size)
        return dataclasses.replace(config, placement=placement)

    def group(self, processes: int, device: torch.device) -> Group | None:
        """All of them, ready to be told; None for one process.

        Args:
            processes: How many there are to be.
            device: Where this one computes.

        Raises:
            SetupError: There are fewer GPUs, or this process renders another film with others.
            ProcessLost: One did not start.
        """
        if processes == 1:
            return None
        if self._group is None or self._group.size != processes:
            self.close()
            if self._told is None:
                _require_gpus(processes, device)
                self._start(processes)
            else:
                self._group = joined()
        return self._group

    def _start(self, processes: int) -> None:
        if is_member():
            raise SetupError(
                "this process renders a film together with others already",
                "finish that one first, or render in another process",
            )
        if launched() is not None:
            raise SetupError(
                "a launcher started several processes that each make clips of their own, and "
                f"--parallel {processes} asks for more of them",
                "use --parallel 1, or start one process",
            )
        port = _free_port()
        usual = {"WORLD_SIZE": str(processes), "MASTER_ADDR": HERE, "MASTER_PORT": str(port)}
        argv = [sys.executable, "-m", "cfgen.pipeline.follower"]
        try:
            for rank in range(1, processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                child = subprocess.Popen(
                    argv,
                    env=os.environ | usual | own,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for this process alone
                )
                self._children.append(child)
            for rank, child in enumerate(self._children, start=1):
                assert child.stdout is not None
                if not child.stdout.read(1):
                    raise ProcessLost(f"process {rank + 1} of {processes} did not start")
            self._group = Group(lead_at=(f"{HERE}:{port}", processes))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let those go that were started here, and wait for them."""
        if self._told is not None:
            return  # they stay for the next film, and end with this process
        if self._group is not None:
            if broken := self._group.is_broken:
                for child in self._children:
                    child.kill()
            with contextlib.suppress(ProcessLost):
                if not broken:
                    self._group.tell(End())
            self._group.close()
            self._group = None
        for child in self._children:
            with child:
                assert child.stdin is not None
                with contextlib.suppress(OSError):
                    child.stdin.close()
                try:
                    child.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
        self._children = []


def _require_gpus(processes: int, device: torch.device) -> None:
    """Refuse more processes than there are GPUs, where they compute on GPUs.

    Raises:
        SetupError: There are fewer.
    """
    if device.type == "cuda" and (there := torch.cuda.device_count()) < processes:
        raise SetupError(
            f"--parallel {processes} needs as many GPUs, and torch sees {there}",
            f"use --parallel {there}, or --set device=cpu",
        )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HERE, 0))
        return int(found.getsockname()[1])
