"""PyTorch files: read without running anything of them, refused where they bring code or bombs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import tiny
from tests.checkpoint.small import load_state

STATE = {name: torch.from_numpy(weight) for name, weight in tiny.source().items()}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def under(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content: object, folder: Path, **options: bool) -> Path:
    torch.save(content, folder / "model.pt", **options)
    return folder / "model.pt"


def inside(name: str) -> str:
    """A name as activation checkpointing, torch.compile and FSDP leave it."""
    return (
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")
        .replace("self_attn.", "_orig_mod.self_attn.")
        .replace("ffn.", "_fsdp_wrapped_module.ffn.")
    )


OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
    "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
}
TRAINING = {
    "critic": under("model.", OTHER),
    "generator_optimizer": OPTIMIZER,
    "critic_optimizer": OPTIMIZER,
    "step": 600,
}

CONTAINERS: dict[str, object] = {
    "bare": STATE,
    "ordered": OrderedDict(STATE),
    "generator": {"generator": under("model.")},
    "generator_ema": {"generator_ema": under("model.")},
    "generator, EMA is none": {"generator": STATE, "generator_ema": None},
    "model": {"model": STATE, "epoch": 3, "args": {"lr": 1e-4}},
    "state_dict": {"state_dict": under("module.")},
    "FSDP": {"generator": under("model._fsdp_wrapped_module.")},
    "residue": {"generator": {inside(f"model.{name}"): t for name, t in STATE.items()}},
    "all of a training": {"generator": under("model."), **TRAINING},
    "parameters": {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_generator_is_found_in_every_container(kind: str, tmp_path: Path) -> None:
    found = load_generator(saved(CONTAINERS[kind], tmp_path)).state_dict()
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_averaged_weights_are_taken_unless_the_others_are_asked_for(tmp_path: Path) -> None:
    both = {"generator": under("model.", OTHER), "generator_ema": under("model."), **TRAINING}
    path = saved(both, tmp_path)
    for prefer, wanted in (({}, STATE), ({"prefer": "generator"}, OTHER)):
        found = load_generator(path, **prefer).state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in STATE)
    assert open_generator(path).naming.prefix == "generator_ema/model."


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_small_dtypes_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    packed = {n: t.to(dtype) if tiny.is_packed(n) else t for n, t in STATE.items()}
    found = load_generator(saved(packed, tmp_path), expand=True).state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in packed.items())


def test_quantized_layers_in_a_pickle_are_read(tmp_path: Path) -> None:
    weight = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    path = saved({"m.weight": weight, "m.weight_scale": torch.tensor([[0.5], [2.0]])}, tmp_path)
    assert load_state(path)["m.weight"].tolist() == [[0.5, -1.0], [6.0, 8.0]]


def test_the_format_before_zip_archives_is_read(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(4.0)}, tmp_path, _use_new_zipfile_serialization=False)
    assert load_state(path)["a"].tolist() == [0, 1, 2, 3]


def test_a_later_protocol_of_pickle_is_read_silently_or_refused(tmp_path: Path) -> None:
    for protocol in (3, 4, 5):
        path = tmp_path / f"{protocol}.pt"
        torch.save({"a": torch.ones(2)}, path, pickle_protocol=protocol)
        if protocol == 3:  # torch warns, which fails a test
            assert load_state(path)["a"].tolist() == [1, 1]
            continue
        with pytest.raises(CheckpointError, match="pickled by a protocol above 3, which torch doe"):
            open_container(path)


def test_views_and_tensors_under_two_names_are_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"whole": whole, "row": whole[1], "turned": whole.T, "again": whole}
    file = open_container(saved(content, tmp_path))
    for name, tensor in content.items():
        found = file.read(name)
        assert torch.equal(found, tensor)
        assert found.is_contiguous()
        assert found.untyped_storage().nbytes() == file.entries[name].nbytes == tensor.nbytes


def test_tensors_in_lists_are_not_passed_over(tmp_path: Path) -> None:
    file = open_container(saved({"a": [torch.ones(1), {"b": (torch.ones(2),)}], "n": 3}, tmp_path))
    assert set(file.entries) == {"a/0", "a/1/b/0"}
    with pytest.raises(CheckpointError, match="has unknown extra/0"):
        load_generator(saved({**STATE, "extra": [torch.ones(1)]}, tmp_path))


def test_a_read_tensor_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(1000.0)}, tmp_path)
    found = open_container(path).read("a")
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found, torch.arange(1000.0))
