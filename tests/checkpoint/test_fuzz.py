"""No file, however damaged, does anything but load or be refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from tests.checkpoint import damage
from tests.checkpoint.conftest import SMALL
from tests.checkpoint.small import load_state
from tests.strategies import random_generator

bounded = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=5),
    suppress_health_check=list(HealthCheck),
)


def judge(path: Path, *loads: Callable[[Path], object]) -> None:
    """Whatever a file is, opening and reading it works or is refused in one printable line."""
    for load in loads or (load_state, open_generator):
        refusal = ""
        try:
            load(path)
        except CheckpointError as error:
            refusal = error.message
        assert refusal.isprintable()
        assert len(refusal) < 2100
        assert not refusal or str(path.parent) in refusal


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    path = tmp_path_factory.mktemp("fuzz") / "model"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


SAFETENSORS = damage.safetensors_file()
ARCHIVE, PICKLE = damage.torch_file(archive=True), damage.torch_file(archive=False)
with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as _archive:
    INNER = _archive.read("archive/data.pkl")


def test_the_files_that_will_be_damaged_are_good(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    for content in (SAFETENSORS, ARCHIVE, PICKLE, damage.gguf_file(tmp_path)):
        assert load_state(write(content))
    assert load_state(write(damage.with_pickle(ARCHIVE, INNER)))


@bounded
@given(content=damage.damaged(SAFETENSORS))
def test_damaged_safetensors(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(content))


@bounded
@given(content=damage.odd_safetensors())
def test_odd_safetensors(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(content))


@bounded
@given(data=st.data())
def test_damaged_gguf(
    data: st.DataObject, write: Callable[[bytes], Path], gguf_content: bytes
) -> None:
    judge(write(b"GGUF" + data.draw(damage.damaged(gguf_content[4:]))))


@pytest.fixture(scope="module")
def gguf_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return damage.gguf_file(tmp_path_factory.mktemp("gguf"))


@bounded
@given(content=damage.odd_gguf())
def test_odd_gguf(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(content))


@bounded
@given(content=damage.damaged(ARCHIVE))
def test_damaged_archive(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(b"PK\x03\x04" + content[4:]))


@bounded
@given(pickle=damage.damaged(INNER))
def test_damaged_pickle_in_a_good_archive(pickle: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(damage.with_pickle(ARCHIVE, pickle)))


@bounded
@given(content=damage.damaged(PICKLE))
def test_damaged_bare_pickle(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(b"\x80\x02" + content[2:]))


@bounded
@given(content=damage.contents, archive=st.booleans())
def test_odd_contents_of_pytorch_files(
    content: object, archive: bool, write: Callable[[bytes], Path]
) -> None:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    judge(write(file.getvalue()))


@bounded
@given(config=damage.configs)
def test_odd_config(config: object, model: Path) -> None:
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    judge(model, load_generator)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_file(random_generator(SMALL).state_dict(), folder / "model.safetensors")
    return folder


@bounded
@given(content=damage.json_values | st.fixed_dictionaries({"weight_map": damage.json_values}))
def test_odd_index(content: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors.index.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    judge(path)


@settings(bounded, max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, write: Callable[[bytes], Path]) -> None:
    judge(write(content))
