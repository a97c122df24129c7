"""Files of any size are quantized and converted in the memory of their largest tensors."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.formats.safetensors import write_stream
from cfgen.model.generator import Generator, WanConfig
from tests.checkpoint import tiny

TinyFile = Callable[[str], tiny.Tiny]

MEASURE = """
    import sys
    from pathlib import Path
    import torch
    from cfgen.checkpoint.convert.convert import plan_convert
    from cfgen.checkpoint.convert.quantize import plan_quantize
    from cfgen.checkpoint.convert.input import open_source

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

    def write(path, target):
        source = open_source(path)
        for format in ("int8", "nvfp4"):
            plan_quantize(source, format)[0].write(target)
        plan_convert(source, dtype=torch.float16).write(target)

    torch.set_num_threads(1)
    small, large, target = map(Path, sys.argv[1:])
    write(small, target)  # loads whatever is loaded at the first use
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    write(large, target)
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_far_below_the_size_of_the_file(tiny_file: TinyFile, tmp_path: Path) -> None:
    with torch.device("meta"):
        sizes = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=4)
        outline = Generator(sizes).bfloat16().state_dict()
    entries = {n: Entry("bfloat16", tuple(t.shape), t.nbytes) for n, t in outline.items()}
    noise = torch.randn(2**20, dtype=torch.bfloat16)
    large = tmp_path / "large.safetensors"

    def some(name: str) -> Tensor:
        count = outline[name].numel()
        return noise.repeat(-(-count // len(noise)))[:count].view(outline[name].shape)

    write_stream(entries, some, large, {})
    assert large.stat().st_size > 400e6
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(MEASURE),
            str(tiny_file("native_bf16").path),
            str(large),
            str(tmp_path / "out.safetensors"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(re.sub(r"\s", "", done.stdout)) < 100e6
