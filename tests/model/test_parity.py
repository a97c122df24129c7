"""The generator against what the published code computed on the same weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.memory.protocols import Pass, VisibleSlot
from cfgen.memory.window import WindowTable
from cfgen.model.generator import Generator
from cfgen.ops.reference import Rope, rotate, turns
from cfgen.rollout.schedule import FewStepSchedule, ReferenceNoise
from tests.golden.cases import (
    FOLDER,
    GRID,
    TABLES,
    TINY,
    Case,
    load_case,
    paged,
    play,
    tiny_generator,
)

FLOAT32, FLOAT64 = 2e-5, 1e-9

CASES = {name: load_case(name) for name in TABLES}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", TABLES)
def test_recorded_clip_is_reproduced(name: str, backend: str, generator: Generator) -> None:
    case = CASES[name]
    played = play(case, generator, paged(TABLES[name], backend=backend))
    assert played.error(case) < FLOAT32
    traced = [
        played.x0[4 * chunk + step] for chunk in case.facts["trace_chunks"] for step in range(4)
    ]
    expected = case.tensors["trace/x0"].flatten(0, 1)
    assert float((torch.cat(traced) - expected).abs().max()) < FLOAT32
    assert (
        float((last_keys(played.memory, name) - case.tensors["kv_final/k_last_layer"]).abs().max())
        < FLOAT32
    )


def last_keys(memory, name: str) -> Tensor:
    """The last layer's keys as the peer stores them: rotated, or raw where positions are slots."""
    layer = TINY.num_layers - 1
    slots = memory.tables[layer].slots()
    pages = [slot.page for slot in slots]
    keys = memory.pool.layer(layer).k[pages].transpose(2, 3).flatten(0, 2)[None]
    if name == "ll_infinity":
        angles = -Rope(32).spatial(GRID).repeat(len(slots), 1)
    else:
        temporal = Rope(32).temporal([slot.frame for slot in slots])
        angles = temporal.repeat_interleave(GRID[0] * GRID[1], 0)
    return rotate(keys, turns(angles, keys.dtype, keys.device))


@pytest.mark.parametrize("name", TABLES)
def test_reference_noise_gives_the_recorded_clip(name: str, generator: Generator) -> None:
    case = CASES[name]
    noise = ReferenceNoise(
        case.facts["seeds"]["noise"], tuple(case.tensors["noise"].shape), draws=3
    )
    assert play(case, generator, paged(TABLES[name]), noise=noise).error(case) < FLOAT32


@pytest.mark.parametrize("name", TABLES)
def test_most_of_the_error_is_the_rounding_of_timesteps(name: str, generator: Generator) -> None:
    """The peers look timesteps up in a float32 table (833.3333129882812); ours are exact."""
    case = CASES[name]
    steps = FewStepSchedule.from_timesteps(case.facts["denoising_step_list"], warped=False)
    assert play(case, generator, paged(TABLES[name]), steps=steps).error(case) < FLOAT32 / 4


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    save_file(
        load_file(FOLDER / "tiny_wan.safetensors"), tmp_path / "diffusion_pytorch_model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    generator = load_generator(tmp_path, dtype=torch.bfloat16)
    case = CASES["ll_plain"]
    played = play(case, generator, paged(TABLES["ll_plain"], dtype=torch.bfloat16))
    difference = played.latents - case.tensors["latents"]
    assert float(difference.square().mean().sqrt()) < 0.015
    assert 1e-4 < float(difference.abs().max()) < 0.15


class Bidirectional:
    """A recorded forward of Wan's bidirectional model in one of its key layouts."""

    def __init__(self, layout: str) -> None:
        path = FOLDER / f"wan_bidir_{layout}.safetensors"
        self.tensors = load_file(path)
        with safe_open(path, "pt") as file:
            self.config = json.loads(file.metadata()["config"])

    def save(self, folder: Path) -> None:
        weights = {name: t for name, t in self.tensors.items() if "/" not in name}
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config))

    def flow(self, folder: Path, dtype: torch.dtype, backend: str) -> Tensor:
        generator = load_generator(folder, dtype=dtype)
        x, timestep, text = (
            self.tensors[f"in/{key}"].to(dtype) for key in ("x", "timestep", "text")
        )
        memory = paged(lambda: WindowTable(5), backend=backend, batch=2, dtype=dtype)
        with torch.inference_mode():
            view = memory.begin(5).at(Pass(0))
            sigma = timestep.double()[:, None] / 1000
            return generator(x.transpose(1, 2), sigma, generator.condition(text), view).transpose(
                1, 2
            )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_bidirectional_forward_is_reproduced(layout: str, backend: str, tmp_path: Path) -> None:
    recorded = Bidirectional(layout)
    recorded.save(tmp_path)
    original = load_file(FOLDER / "wan_bidir_original.safetensors")
    single = recorded.flow(tmp_path, torch.float32, backend)
    assert float((single - original["out/flow"]).abs().max()) < FLOAT32
    double = recorded.flow(tmp_path, torch.float64, backend)
    assert float((double - original["out/flow_f64"]).abs().max()) < FLOAT64


class Replaced:
    """A generator that is called in a wrong way."""

    def __init__(self, generator: Generator, call: Callable) -> None:
        self._generator, self._call = generator, call
        self.device, self.condition = generator.device, generator.condition

    def level(self, sigma: float) -> float:
        return sigma

    def __call__(self, *args):
        return self._call(self._generator, *args)

    commit = __call__


class ShiftedTable(WindowTable):
    """Keys of the past one latent frame too early."""

    def visible_slots(self, pass_: Pass, admitted: bool) -> list[VisibleSlot]:
        placed = super().visible_slots(pass_, admitted)
        return [VisibleSlot(p.slot, p.position - 1) for p in placed[:-3]] + placed[-3:]


class OtherAxes(Rope):
    """Channels split 8, 12, 12 between time, height and width, not 12, 10, 10."""

    def temporal(self, positions) -> Tensor:
        angles = torch.zeros(len(positions), 16, dtype=torch.float64)
        angles[:, :4] = self._axis(torch.tensor(positions), 4)
        return angles

    def spatial(self, grid: tuple[int, int]) -> Tensor:
        angles = torch.zeros(*grid, 16, dtype=torch.float64)
        angles[..., 4:10] = self._axis(torch.arange(grid[0]), 6)[:, None]
        angles[..., 10:] = self._axis(torch.arange(grid[1]), 6)
        return angles.flatten(0, 1)


class PerHeadNorm(nn.Module):
    """A norm of each head by itself."""

    def __init__(self, full: nn.Module) -> None:
        super().__init__()
        self.weight = full.weight

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (3, 32))
        normed = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + 1e-6)
        return normed.flatten(-2) * self.weight


def masked_padding(case: Case) -> float:
    rows = int(case.tensors["text/A"][0].abs().sum(-1).ne(0).sum())
    text = case.tensors["text/A"][:, :rows]
    return play(case, tiny_generator(), paged(TABLES["sf_full"]), text=text).error(case)


def no_commit_pass(case: Case) -> float:
    last: list = []

    def call(generator, x, sigma, text, view):
        if view.pass_.commit:
            x, sigma = last
        last[:] = [x, sigma]
        return generator(x, sigma, text, view)

    return play(case, Replaced(tiny_generator(), call), paged(TABLES["sf_full"])).error(case)


def integer_timesteps(case: Case) -> float:
    def call(generator, x, sigma, text, view):
        return generator(x, int(sigma * 1000 + 1e-9) / 1000, text, view)

    return play(case, Replaced(tiny_generator(), call), paged(TABLES["sf_full"])).error(case)


def norm_per_head(case: Case) -> float:
    generator = tiny_generator()
    for block in generator.blocks:
        attention = block.cross_attn
        attention.norm_q = PerHeadNorm(attention.norm_q)
        attention.norm_k = PerHeadNorm(attention.norm_k)

    def norm(x: Tensor, gain: Tensor, eps: float, head_dim: int, _rate: Tensor | None) -> Tensor:
        heads = x.unflatten(-1, (-1, head_dim))
        return rms_norm(heads, (head_dim,), eps=eps) * gain.view(-1, head_dim)

    with patch("cfgen.memory.pre_rotated.norm", norm):
        return play(case, generator, paged(TABLES["sf_full"])).error(case)


def other_axes(case: Case) -> float:
    return play(case, tiny_generator(), paged(TABLES["sf_full"], rope=OtherAxes(32))).error(case)


def with_table(table: Callable) -> Callable[[Case], float]:
    return lambda case: play(case, tiny_generator(), paged(table)).error(case)


MISTAKES = {
    "text padding masked": ("sf_full", masked_padding, 8.44e-1),
    "no commit pass": ("sf_full", no_commit_pass, 1.29),
    "keys one frame off": ("sf_full", with_table(lambda: ShiftedTable(21)), 1.64e-1),
    "integer timesteps": ("sf_full", integer_timesteps, 1.37e-1),
    "norm per head": ("sf_full", norm_per_head, 4.39e-1),
    "other rotary axes": ("sf_full", other_axes, 7.23e-1),
    "sink on top of the window": ("ll_plain", with_table(lambda: WindowTable(15, sink=3)), 2.38e-1),
    "window one short": ("ll_plain", with_table(lambda: WindowTable(11, sink=3)), None),
    "no sink": ("ll_plain", with_table(lambda: WindowTable(12)), None),
    "relative for absolute": ("ll_plain", with_table(TABLES["ll_infinity"]), 3.94e-1),
    "absolute for relative": ("ll_infinity", with_table(TABLES["ll_plain"]), 3.94e-1),
}
"""The case, how the mistake is made, and its maximum error in the recorded code, where known."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_seen(mistake: str) -> None:
    name, error_of, recorded = MISTAKES[mistake]
    error = error_of(CASES[name])
    assert error > 1000 * FLOAT32
    if recorded is not None:
        assert error == pytest.approx(recorded, rel=0.02)
