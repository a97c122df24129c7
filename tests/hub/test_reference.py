"""A model is found on disk or in the cache, and never on the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.errors import (
    CheckpointError,
)
from cfgen.hub import Reference, locate, parse_reference
from cfgen.hub.reference import commit_of
from tests.hub.conftest import (
    COMMIT,
    OTHER,
    in_the_cache,
    set_ref,
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", Reference("Wan-AI/Wan2.1-T2V-1.3B")),
        ("o/n@v1.0", Reference("o/n", "v1.0")),
        ("o/n/a/b c.gguf", Reference("o/n", None, "a/b c.gguf")),
        ("o/n@main/w.safetensors", Reference("o/n", "main", "w.safetensors")),
        ("o/n@refs/pr/7/w.pt", Reference("o/n", "refs/pr/7", "w.pt")),
        ("o/n@dev%2Ffast/w.pt", Reference("o/n", "dev/fast", "w.pt")),
    ],
)
def test_a_reference_is_read_and_written(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mini",
        "/etc/x",
        "./o/n",
        "~/o/n",
        "o",
        "o/",
        "/n",
        "o//n",
        "C:\\o\\n",
        "o/n/",
        "o/n/../x",
    ]
    + ["o/n@", "o/n@..", "o/n@%2E%2E%2Fx", "o/n/a\\b", "o--p/n", "o/n.git", "o/w.safetensors"]
    + ["o/n@v1@v2", "o/-n", "o/" + "n" * 97, "https://hub/o/n"],
)
def test_what_can_be_no_repository_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None


PARTS = st.text("abcXYZ019._-@%é ", min_size=1, max_size=12).filter(lambda t: t not in (".", ".."))


@given(
    repo=st.from_regex(r"[a-z]{1,5}/[a-z0-9]{1,5}", fullmatch=True),
    revision=st.none() | st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    file=st.none() | st.lists(PARTS, min_size=1, max_size=3).map("/".join),
)
def test_every_reference_is_read_as_it_was_written(
    repo: str, revision: str | None, file: str | None
) -> None:
    reference = Reference(repo, revision, file)
    assert parse_reference(str(reference)) == reference


def test_the_cache_is_where_huggingface_hub_looks(tmp_path: Path) -> None:
    variables = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    values = (None, "~/a", "/b/$HOME/c")
    code = (
        "import importlib, itertools, os, pathlib, sys\n"
        "from huggingface_hub import constants\n"
        "from cfgen.hub.reference import cache_folder\n"
        f"for values in itertools.product({values!r}, repeat=4):\n"
        f"    for name, value in zip({variables!r}, values):\n"
        "        os.environ.pop(name, None)\n"
        "        if value is not None: os.environ[name] = value\n"
        "    importlib.reload(constants)\n"
        "    assert cache_folder() == pathlib.Path(constants.HF_HUB_CACHE), values\n"
        "sys.stdout.write('same')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "same", done.stderr


def test_a_path_on_disk_wins_over_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    cached = in_the_cache(cache, "w.safetensors", b"cached")
    set_ref(cache, "main", COMMIT)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/model/w.safetensors", what="model", cache=cache) == cached
    here = tmp_path / "owner" / "model" / "w.safetensors"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"here")
    found = locate("owner/model/w.safetensors", what="model", cache=cache)
    assert found.read_bytes() == b"here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner", what="model", cache=cache) == tmp_path / "owner"


@pytest.mark.parametrize("revision", ["", "@main", "@refs/pr/1", f"@{COMMIT}", f"@{COMMIT[:7]}"])
def test_a_reference_means_a_snapshot_or_a_file_of_it(tmp_path: Path, revision: str) -> None:
    pointer = in_the_cache(tmp_path, "sub/w.safetensors", b"w")
    set_ref(tmp_path, "main", COMMIT)
    set_ref(tmp_path, "refs/pr/1", COMMIT)
    snapshot = pointer.parent.parent
    assert locate(f"owner/model{revision}", what="model", cache=tmp_path) == snapshot
    assert locate(f"owner/model{revision}/sub", what="model", cache=tmp_path) == pointer.parent
    file = f"owner/model{revision}/sub/w.safetensors"
    assert locate(file, what="model", cache=tmp_path) == pointer


def test_the_cache_of_the_environment_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    pointer = in_the_cache(tmp_path / "hub", "w.gguf", b"w")
    set_ref(tmp_path / "hub", "main", COMMIT)
    assert locate("owner/model/w.gguf", what="model") == pointer


def test_what_is_nowhere_is_refused_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate("owner/model@v1/w x.pt", what="LoRA", cache=tmp_path)
    assert caught.value.message == (
        "the LoRA 'owner/model@v1/w x.pt' is neither on disk nor in the Hugging Face cache "
        f"{tmp_path}"
    )
    assert caught.value.hint == "cfgen models pull 'owner/model@v1/w x.pt'"


def test_other_revisions_in_the_cache_are_named(tmp_path: Path) -> None:
    in_the_cache(tmp_path, "w.pt", b"w", commit=OTHER)
    in_the_cache(tmp_path, "else.pt", b"e", commit=COMMIT)
    with pytest.raises(CheckpointError, match=r"other revisions are there: owner/model@decade1/w"):
        locate("owner/model/w.pt", what="model", cache=tmp_path)


def test_a_file_whose_content_is_gone_is_not_found(tmp_path: Path) -> None:
    pointer = in_the_cache(tmp_path, "w.pt", b"w")
    set_ref(tmp_path, "main", COMMIT)
    pointer.resolve().unlink()
    with pytest.raises(CheckpointError, match="neither on disk nor in"):
        locate("owner/model/w.pt", what="model", cache=tmp_path)


def test_a_mistyped_path_is_not_taken_for_a_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'models/wan\.safetensors' is not on disk"):
        locate("models/wan.safetensors", what="model", cache=tmp_path)


def test_a_commit_cut_too_short_or_shared_by_two_is_not_guessed(tmp_path: Path) -> None:
    in_the_cache(tmp_path, "w.pt", b"w")
    in_the_cache(tmp_path, "w.pt", b"w", commit=COMMIT[:-1] + "1")
    assert commit_of(Reference("owner/model", COMMIT[:6]), tmp_path) is None
    assert commit_of(Reference("owner/model", COMMIT[:8]), tmp_path) is None
    assert commit_of(Reference("owner/model", COMMIT), tmp_path) == COMMIT


def test_finding_needs_neither_huggingface_hub_nor_torch_nor_the_network(tmp_path: Path) -> None:
    in_the_cache(tmp_path, "w.pt", b"w")
    set_ref(tmp_path, "main", COMMIT)
    code = (
        "import socket, sys\n"
        "socket.socket.connect = None\n"
        "import cfgen.hub.pull, cfgen.hub.cache\n"
        "from cfgen.hub import locate\n"
        "locate('owner/model/w.pt', what='model')\n"
        "heavy = ('torch', 'numpy', 'huggingface_hub', 'httpx', 'httpx2', 'requests')\n"
        "sys.stdout.write(str([name for name in heavy if name in sys.modules]))"
    )
    environ = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]", done.stderr
