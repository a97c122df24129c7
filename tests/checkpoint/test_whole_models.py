"""Files of whole models give each of their networks; containers of other kinds are named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfgen.checkpoint.convert.convert import plan_convert
from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import open_generator
from cfgen.checkpoint.networks.text_encoder import open_text_encoder
from cfgen.checkpoint.networks.vae import open_vae
from cfgen.config.presets import presets_folder
from cfgen.errors import CheckpointError
from tests.checkpoint import packing, tiny

MINI = presets_folder() / "mini"


def whole(folder: Path, vae: str, text: str) -> Path:
    """The model in the box as one file, its parts under these prefixes."""
    parts = {
        "model.diffusion_model.": MINI / "diffusion_pytorch_model.safetensors",
        vae: MINI / "tae.safetensors",
        text: next((MINI / "text_encoder").glob("*.safetensors")),
    }
    tensors = {f"{start}{n}": t for start, p in parts.items() for n, t in load_file(p).items()}
    save_file(tensors, folder / "whole.safetensors")
    return folder / "whole.safetensors"


@pytest.mark.parametrize(
    ("vae", "text"),
    [
        ("vae.", "text_encoders.umt5xxl.transformer."),
        ("first_stage_model.", "cond_stage_model.transformer."),
        ("vae.", "text_encoder."),
    ],
)
def test_each_part_is_taken_out_of_a_file_of_a_whole_model(
    vae: str, text: str, tmp_path: Path
) -> None:
    path = whole(tmp_path, vae, text)
    alone = open_vae(MINI / "tae.safetensors").shapes
    assert open_vae(path).shapes == alone
    assert open_text_encoder(path).shapes == open_text_encoder(MINI / "text_encoder").shapes
    assert open_generator(path).shapes == open_generator(MINI).shapes


def repacked(path: Path, target: Path, method: int) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", method) as made:
        for member in source.infolist():
            made.writestr(member.filename, source.read(member))
    return target


def test_archive_that_was_zipped_again_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    again = repacked(tmp_path / "a.pt", tmp_path / "b.pt", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="zipped again"):
        open_container(again)


def test_torchscript_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            made.writestr(f"m/{name}", b"")
    with pytest.raises(CheckpointError, match="TorchScript") as caught:
        open_container(tmp_path / "m.pt")
    assert caught.value.hint


def test_distributed_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    (tmp_path / "__0_0.distcp").write_bytes(b"PK\x03\x04")
    for place in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(CheckpointError, match="distributed checkpoint") as caught:
            open_generator(place)
        assert "dcp_to_torch" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        open_container(tmp_path)


@pytest.mark.parametrize(
    ("end", "who"),
    [
        ("scale", "SDNQ"),
        ("svd_up", "SDNQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_inv", "DeepSeek"),
        ("pre_quant_scale", "AWQ or SVDQuant of ModelOpt"),
    ],
)
def test_quantizer_is_told_by_its_tensors(end: str, who: str, tmp_path: Path) -> None:
    packed = tiny.pack(tiny.STYLES["comfyquant_int8"])
    tensors = {n: t for n, t in packed.tensors.items() if not n.endswith("comfy_quant")}
    tensors |= {
        n.replace("weight_scale", end): t for n, t in tensors.items() if "weight_scale" in n
    }
    tensors = {n: t for n, t in tensors.items() if end == "x" or not n.endswith(".weight_scale")}
    path = packing.write_safetensors(tmp_path / "m.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"is quantized by .*{who}"):
        open_generator(path)


@pytest.mark.parametrize("how", ["header", "sidecar", "nothing"])
def test_what_is_written_anew_keeps_its_preset(how: str, tmp_path: Path) -> None:
    packed = tiny.pack(tiny.NATIVE)
    source = tmp_path / "source.safetensors"
    header = {"cfgen.recipe": "longlive"} if how == "header" else {}
    packing.write_safetensors(source, packed.tensors, header)
    if how == "sidecar":
        (tmp_path / "source.safetensors.yaml").write_text("recipe: longlive\n")
    target = tmp_path / "other" / "made.safetensors"
    target.parent.mkdir()
    plan_convert(open_source(source), to="diffusers").write(target)
    told = open_container(target).metadata.get("cfgen.recipe")
    assert told == (None if how == "nothing" else "longlive")
