"""What is decided on the keys of a pass, on both sides of the threshold."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cfgen.kernels.pages import ADMITTED, ADMITTED_NOW, CAN_ADMIT, UPDATE_REFERENCE
from cfgen.kernels.similarity import admit, unsupported
from cfgen.ops import reference
from tests.kernels.buffers import draw, error, poison


@pytest.fixture(autouse=True)
def _poisoned(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def decision(device: torch.device, *, is_open: int, renew: int, admitted: int) -> Tensor:
    values = {CAN_ADMIT: is_open, UPDATE_REFERENCE: renew, ADMITTED: admitted, ADMITTED_NOW: 7}
    return torch.tensor([values[i] for i in range(4)], dtype=torch.int32, device=device)


def case(batch: int, groups: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Sums, a reference near their mean over 100 tokens, and the similarity of the two."""
    parts = draw(batch, groups, width, device=device) + 1
    keys = parts.double().sum(1) / 100
    near = (keys + 0.2 * keys.std() * draw(batch, width, device=device)).float()
    return parts, near, float(torch.cosine_similarity(near.double(), keys, dim=-1).mean())


@pytest.mark.parametrize(
    ("is_open", "renew", "admitted", "surprising"), [*itertools.product((0, 1), repeat=4)]
)
def test_every_decision_is_that_of_the_reference(
    is_open: int, renew: int, admitted: int, surprising: int, device: torch.device
) -> None:
    parts, near, similarity = case(2, 5, 96, device)
    tau = similarity + (1e-5 if surprising else -1e-5)
    found, expected = (
        decision(device, is_open=is_open, renew=renew, admitted=admitted) for _ in range(2)
    )
    kept, right = near.clone(), near.clone()
    admit(parts, kept, found, tokens=100, tau=tau)
    reference.admit(parts, right, expected, tokens=100, tau=tau)
    assert torch.equal(found, expected)
    assert int(found[ADMITTED_NOW]) == (surprising and is_open and not admitted)
    if found[ADMITTED_NOW] or renew:
        assert error(kept, right) < 1e-6
        assert error(kept, near) > 1e-2
    else:
        assert torch.equal(kept, near)


@pytest.mark.parametrize(
    ("batch", "groups", "width"), [(1, 1, 1), (3, 129, 40), (1, 300, 33), (1, 4, 1536)]
)
def test_the_reference_becomes_the_mean_of_all_tokens(
    batch: int, groups: int, width: int, device: torch.device
) -> None:
    parts = draw(batch, groups, width, device=device) + 0.5
    kept = torch.zeros(batch, width, device=device)
    found = decision(device, is_open=0, renew=1, admitted=0)
    admit(parts, kept, found, tokens=77, tau=0.9)
    assert error(kept, parts.double().sum(1) / 77) < 1e-6


def test_similarity_is_the_mean_over_the_batch(device: torch.device) -> None:
    parts = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], device=device)
    kept = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device)
    for tau, fires in ((0.49, 0), (0.51, 1)):
        found = decision(device, is_open=1, renew=0, admitted=0)
        admit(parts, kept.clone(), found, tokens=1, tau=tau)
        assert found[ADMITTED_NOW] == fires


def test_nothing_yet_to_compare_with_is_surprising(device: torch.device) -> None:
    parts, kept = draw(1, 3, 16, device=device), torch.zeros(1, 16, device=device)
    found = decision(device, is_open=1, renew=0, admitted=0)
    admit(parts, kept, found, tokens=3, tau=0.5)
    assert found[ADMITTED_NOW] == found[ADMITTED] == 1
    assert kept.any()


def test_an_admission_stays_until_the_next_chunk(device: torch.device) -> None:
    """A second surprising pass of the same chunk admits nothing more and changes nothing."""
    parts, kept = draw(1, 3, 16, device=device), torch.zeros(1, 16, device=device)
    found = decision(device, is_open=1, renew=0, admitted=0)
    admit(parts, kept, found, tokens=3, tau=0.5)
    first = kept.clone()
    admit(-parts, kept, found, tokens=3, tau=0.5)
    assert (int(found[ADMITTED_NOW]), int(found[ADMITTED])) == (0, 1)
    assert torch.equal(kept, first)


def test_similar_keys_of_a_close_threshold_are_told_apart(device: torch.device) -> None:
    """Thresholds of trained models lie as near to 1 as 0.9994."""
    parts, near, similarity = case(1, 12, 256, device)
    near = (parts.sum(1) / 100 + 0.05 * (near - parts.sum(1) / 100)).float()
    keys = parts.double().sum(1) / 100
    similarity = float(torch.cosine_similarity(near.double(), keys, dim=-1))
    assert 0.9994 < similarity < 1
    for tau, fires in ((similarity - 1e-6, 0), (similarity + 1e-6, 1)):
        found = decision(device, is_open=1, renew=0, admitted=0)
        admit(parts, near.clone(), found, tokens=100, tau=tau)
        assert found[ADMITTED_NOW] == fires


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    parts = draw(1, 3, 16, device=device)
    found = decision(device, is_open=1, renew=0, admitted=0)
    with pytest.raises(ValueError, match=r"keys are \[1, 16\]"):
        admit(parts, draw(1, 8, device=device), found, tokens=3, tau=0.5)
    with pytest.raises(ValueError, match=r"give reference_BC.contiguous\(\)"):
        admit(parts, draw(1, 32, device=device)[:, ::2], found, tokens=3, tau=0.5)


def test_unsupported_names_the_device(device: torch.device) -> None:
    assert unsupported(device) is None
    assert "CUDA" in str(unsupported(torch.device("meta")))
