"""`cfgen quantize` and `cfgen convert` from the outside: files, exit codes, reports, words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from cfgen.checkpoint.convert.conversion_plan import Step
from cfgen.cli import conversion_options
from cfgen.cli import quantize as quantize_module
from cfgen.cli.console import Console
from cfgen.ops.quant.encode import ENCODINGS
from cfgen.units import bytes_words
from tests.checkpoint import tiny

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write("native_fp32", tmp_path_factory.mktemp("plain")).path


def data_of(result: Result) -> dict[str, Any]:
    line = json.loads(result.stdout.splitlines()[-1])
    assert (line["type"], line["ok"]) == ("envelope", True)
    return line["data"]


def test_the_path_is_the_result_and_the_worst_layers_are_told(cfgen: Run, plain: Path) -> None:
    result = cfgen("quantize", str(plain), "q.safetensors", "--format", "fp8")
    assert (result.exit_code, result.stdout) == (0, "q.safetensors\n")
    lines = result.stderr.splitlines()
    size = bytes_words(Path("q.safetensors").stat().st_size)
    assert lines[0].startswith(f"10 layers in fp8: {size}, ")
    assert "on average" in lines[1]
    assert len(lines) == 7
    assert all(line.startswith("  blocks.0.") and line.count("dB") == 1 for line in lines[2:])
    errors = [float(line.split()[1].rstrip("%")) for line in lines[2:]]
    assert errors == sorted(errors, reverse=True)
    assert 2 < errors[-1] < 4


def test_json_and_the_report_hold_every_layer(cfgen: Run, plain: Path) -> None:
    arguments = ("quantize", str(plain), "q.safetensors", "--format", "nvfp4", "--json")
    data = data_of(cfgen(*arguments, "--report", "errors.json"))
    assert data == json.loads(Path("errors.json").read_text())
    assert (data["path"], data["format"], data["kind"]) == (
        "q.safetensors",
        "nvfp4",
        "Wan generator",
    )
    assert data["quantized_layers"] == {"nvfp4": 10}
    assert data["nbytes"] == Path("q.safetensors").stat().st_size
    assert data["source_nbytes"] == plain.stat().st_size
    assert len(data["layers"]) == 10
    first = data["layers"][0]
    assert first.keys() == {
        "layer",
        "format",
        "shape",
        "relative_rms",
        "largest_error",
        "snr_db",
    }
    assert 0.05 < first["relative_rms"] < 0.15
    mean = sum(layer["relative_rms"] for layer in data["layers"]) / 10
    assert data["relative_rms"] == pytest.approx(mean)


def test_exact_layers_are_told_as_such(cfgen: Run, plain: Path) -> None:
    assert cfgen("quantize", str(plain), "a.safetensors", "--format", "int8").exit_code == 0
    assert cfgen("convert", "a.safetensors", "b.safetensors", "--dtype", "f32").exit_code == 0
    again = cfgen("quantize", "b.safetensors", "c.safetensors", "--format", "int8")
    assert again.stderr.count("exact") == 5
    again = cfgen("quantize", "b.safetensors", "d.safetensors", "--format", "int8", "--json")
    assert {layer["snr_db"] for layer in data_of(again)["layers"]} == {None}


REFUSED = {
    "no format": (["quantize", "{plain}", "q.safetensors"], 2, "Missing option '--format'"),
    "odd format": (["quantize", "{plain}", "q.safetensors", "--format", "int4"], 2, "int4"),
    "odd ending": (["quantize", "{plain}", "q.pt", "--format", "int8"], 2, "must end in"),
    "odd pattern": (
        ["quantize", "{plain}", "q.safetensors", "--format", "int8", "--keep", "("],
        2,
        "no regular expression",
    ),
    "no source": (["convert", "none.safetensors", "q.safetensors"], 3, "does not exist"),
    "no folder": (["convert", "{plain}", "no/q.safetensors"], 3, "folder"),
    "itself": (["convert", "{plain}", "{plain}", "-y"], 3, "is the source itself"),
    "exists": (["convert", "{plain}", "old.safetensors"], 3, "exists already"),
    "no such weights": (
        ["convert", "{plain}", "q.safetensors", "--weights", "ema"],
        3,
        "holds no generator_ema",
    ),
    "report exists": (
        ["quantize", "{plain}", "q.safetensors", "--format", "int8", "--report", "old.json"],
        3,
        "old.json exists already",
    ),
    "report is the file": (
        ["quantize", "{plain}", "q.safetensors", "--format", "int8", "--report", "q.safetensors"],
        3,
        "cannot be the report",
    ),
    "report nowhere": (
        ["quantize", "{plain}", "q.safetensors", "--format", "int8", "--report", "no/e.json"],
        3,
        "does not exist",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_before_work(cfgen: Run, what: str, plain: Path) -> None:
    arguments, code, reason = REFUSED[what]
    Path("old.safetensors").write_bytes(b"old")
    Path("old.json").write_bytes(b"old")
    result = cfgen(*(argument.format(plain=plain) for argument in arguments))
    assert result.exit_code == code
    assert reason in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == ["old.json", "old.safetensors"]
    assert Path("old.safetensors").read_bytes() == b"old"


def test_yes_replaces_files(cfgen: Run, plain: Path) -> None:
    for name in ("q.safetensors", "errors.json"):
        Path(name).write_bytes(b"old")
    arguments = ["quantize", str(plain), "q.safetensors", "--format", "int8"]
    assert cfgen(*arguments, "--report", "errors.json", "-y").exit_code == 0
    assert json.loads(Path("errors.json").read_text())["format"] == "int8"
    assert len(load_file("q.safetensors")) > 10


def test_a_quantized_source_is_refused_and_told_what_to_do(cfgen: Run, tmp_path: Path) -> None:
    source = str(tiny.write("lightx2v_int8", tmp_path).path)
    result = cfgen("quantize", source, "q.safetensors", "--format", "fp8")
    assert result.exit_code == 3
    assert "quantized already (int8 in 10 of 10 layers)" in result.stderr
    assert "--requantize" in result.stderr
    again = cfgen("quantize", source, "q.safetensors", "--format", "fp8", "--requantize", "-q")
    assert (again.exit_code, again.stderr) == (0, "")


def test_gguf_asks_for_a_dtype_and_then_is_converted(cfgen: Run, tmp_path: Path) -> None:
    source = str(tiny.write("gguf_Q8_0", tmp_path).path)
    result = cfgen("convert", source, "c.safetensors")
    assert result.exit_code == 3
    assert "safetensors has no type for GGML's blocks" in result.stderr
    assert "--dtype" in result.stderr
    assert cfgen("convert", source, "c.safetensors", "--dtype", "f16").exit_code == 0
    assert {tensor.dtype for tensor in load_file("c.safetensors").values()} == {torch.float16}


def test_diffusers_names_of_quantized_layers_come_with_a_warning(
    cfgen: Run, tmp_path: Path, plain: Path
) -> None:
    source = str(tiny.write("comfyquant_fp8", tmp_path).path)
    result = cfgen("convert", source, "c.safetensors", "--to", "diffusers")
    assert result.exit_code == 0
    assert "warning: diffusers reads no quantized layers" in result.stderr
    result = cfgen("convert", str(plain), "d.safetensors", "--to", "diffusers")
    assert "warning" not in result.stderr
    assert "proj_out.weight" in load_file("d.safetensors")


def test_what_is_left_out_is_told(cfgen: Run, plain: Path) -> None:
    tensors = load_file(plain)
    torch.save({"generator": tensors, "generator_ema": tensors}, "state.pt")
    result = cfgen("convert", "state.pt", "c.safetensors")
    assert "taken from 'generator_ema/'; left out: 'generator/'" in result.stderr
    result = cfgen("convert", "state.pt", "d.safetensors", "--weights", "generator", "--json")
    assert data_of(result)["notes"] == ["taken from 'generator/'; left out: 'generator_ema/'"]


def test_formats_of_the_flag_are_the_encoders() -> None:
    assert get_args(quantize_module.Format) == tuple(ENCODINGS)


@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_help_fits_80_columns_and_shows_examples(cfgen: Run, command: str) -> None:
    page = cfgen(command, "--help")
    assert page.exit_code == 0
    assert max(map(len, page.stdout.splitlines())) <= 80
    assert f"    cfgen {command} " in page.stdout
    assert "config.json" in page.stdout


def test_progress_is_told_at_tenths_and_after_half_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 0.0, 0.5, 5.0, 5.0, 5.0, 8.0, 36.0, 36.0, 36.0])
    writing = conversion_options.Writing(Console(), 1000, now=lambda: next(times))
    writing(Step("too soon", 400))
    writing(Step("a tenth", 500))
    writing(Step("not yet a tenth", 550))
    writing(Step("long ago", 560))
    assert capsys.readouterr().err.splitlines() == [
        "a tenth: 500 B of 1.0 kB, ETA 0:05",
        "long ago: 560 B of 1.0 kB, ETA 0:28",
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_no_half_file(number: int, plain: Path) -> None:
    """It comes while a layer is encoded, after others were written."""
    program = (
        "import sys, time\n"
        "from cfgen.checkpoint.convert import quantize\n"
        "from cfgen.cli import app\n"
        "def slow(weight):\n"
        "    sys.stderr.write('begun\\n')\n"
        "    sys.stderr.flush()\n"
        "    time.sleep(60)\n"
        "quantize.is_finite = slow\n"
        "app.main()\n"
    )
    arguments = ["quantize", str(plain), "q.safetensors", "--format", "int8"]
    Path("q.safetensors").write_bytes(b"old")
    command = [sys.executable, "-c", program, *arguments, "-y"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "begun\n"
        running.send_signal(number)
        rest = running.stderr.read()
    assert running.returncode == 128 + number
    assert "error:" in rest
    assert os.listdir() == ["q.safetensors"]
    assert Path("q.safetensors").read_bytes() == b"old"
