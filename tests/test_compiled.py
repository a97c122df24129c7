"""What torch.compile is given, and that it changes nothing but the last digits."""

from __future__ import annotations

import pytest
import torch

from cfgen.errors import SetupError
from cfgen.pipeline.torch_compile import compile_blocks
from tests.golden.cases import CHUNK, STEPS, TABLES, load_case, paged, play, tiny_generator


def test_a_cpu_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfgen.pipeline.torch_compile.shutil.which", lambda _name: None)
    with pytest.raises(SetupError, match=r"needs a C\+\+ compiler on a CPU") as caught:
        compile_blocks(tiny_generator())
    assert "leave --compile out" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_reproduce_the_recorded_clip() -> None:
    case, generator = load_case("ll_infinity"), tiny_generator()
    compile_blocks(generator)
    assert all(block._compiled_call_impl is not None for block in generator.blocks)
    played = play(case, generator, paged(TABLES["ll_infinity"]))
    assert played.error(case) < 2e-5
    assert played.latents.shape[1] == case.chunks * CHUNK[1]
    assert len(played.x0) == case.chunks * len(STEPS.sigmas)
    assert torch.isfinite(played.latents).all()
