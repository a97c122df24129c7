"""`cfgen models` against a hub on the loopback interface: what it prints, asks and exits with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.cli import models as models_module
from cfgen.cli.download_progress import Fetching
from cfgen.hub import Reference
from cfgen.hub.listing import Hub, Listing, RemoteFile
from cfgen.hub.pull import Step
from tests.hub_server import HubServer, Repo, hub_server, isolate

Run = Callable[..., Result]

COMMIT = "c0ffee" + "0" * 34
MARK = b"..patch_embedding.weight.."
FILES = {"config.json": b"{}", "wan.safetensors": MARK + bytes(300_000)}
LONG = f"{'o' * 39}/{'n' * 60}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    import huggingface_hub

    isolate(monkeypatch, tmp_path / "hf")
    huggingface_hub.close_session()
    with hub_server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        running.repos["owner/model"] = Repo(dict(FILES), frozenset({"wan.safetensors"}))
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def cache(server: HubServer, tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub"


def data_of(result: Result) -> dict:
    return json.loads(result.stdout.splitlines()[-1])["data"]


def test_pull_prints_the_path_and_tells_the_rest_on_stderr(cfgen: Run, cache: Path) -> None:
    result = cfgen("models", "pull", "owner/model")
    assert result.exit_code == 0, result.stderr
    folder = cache / "models--owner--model"
    assert result.stdout == f"{folder / 'snapshots' / COMMIT}\n"
    told = result.stderr.splitlines()
    assert told[:2] == ["      2 B  config.json", " 300.0 kB  wan.safetensors"]
    assert told[2].startswith("2 files, 300.0 kB; 300.0 kB to fetch from http://127.0.0.1:")
    assert told[3] == f"into {folder}"
    assert all(" of 300.0 kB, " in line for line in told[4:-1])
    assert told[-2].startswith("300.0 kB of 300.0 kB, ")
    assert told[-1] == "2 files checked, all whole"


def test_a_second_pull_fetches_nothing_and_prints_the_same(cfgen: Run, server: HubServer) -> None:
    first = cfgen("models", "pull", "owner/model/wan.safetensors")
    server.requests.clear()
    again = cfgen("models", "pull", "owner/model/wan.safetensors", "--quiet")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert first.stdout.endswith(f"/{COMMIT}/wan.safetensors\n")
    assert [request.path for request in server.requests] == [
        "/api/models/owner/model/revision/main"
    ]


def test_a_dry_run_lists_files_and_fetches_none(cfgen: Run, server: HubServer, cache: Path) -> None:
    result = cfgen("models", "pull", "owner/model", "--dry-run", "--include", "*.safetensors")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == " 300.0 kB  wan.safetensors"
    assert "to fetch from" in result.stdout
    assert len(server.requests) == 1
    assert not cache.exists()


def test_pull_json_tells_files_and_ends_with_an_envelope(cfgen: Run, cache: Path) -> None:
    lines = cfgen("models", "pull", "owner/model", "--json").stdout.splitlines()
    kinds = [json.loads(line)["type"] for line in lines]
    assert set(kinds[:-1]) == {"fetch"}
    last = json.loads(lines[-1])
    assert (kinds[-1], last["ok"], last["error"]) == ("envelope", True, None)
    assert last["data"]["commit"] == COMMIT
    assert [file["path"] for file in last["data"]["files"]] == sorted(FILES)
    assert Path(last["data"]["path"]).is_dir()


def test_a_revision_is_named_in_the_reference_or_by_the_flag(
    cfgen: Run, server: HubServer, cache: Path
) -> None:
    server.repos["owner/model"].refs["v1"] = COMMIT
    assert cfgen("models", "pull", "owner/model", "--revision", "v1").exit_code == 0
    assert (cache / "models--owner--model" / "refs" / "v1").read_text() == COMMIT
    both = cfgen("models", "pull", "owner/model@main", "--revision", "v1")
    assert both.exit_code == 2
    assert "two revisions: main in REF and --revision v1" in both.stderr
    assert cfgen("models", "pull", "owner/model", "--revision", "../x").exit_code == 2


@pytest.mark.parametrize("ref", ["nowhere", "./owner/model", "https://hub.example/owner/model"])
def test_what_is_no_reference_is_a_usage_error(cfgen: Run, server: HubServer, ref: str) -> None:
    result = cfgen("models", "pull", ref)
    assert result.exit_code == 2
    assert "is no name on the hub" in result.stderr
    assert server.requests == []


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_offline_pull_refuses_before_any_connection(
    cfgen: Run, server: HubServer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = cfgen("models", "pull", "owner/model", *(["--offline"] if by == "flag" else []))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "forbids the network" in result.stderr
    assert server.requests == []


def test_errors_are_one_sentence_and_a_hint(cfgen: Run, server: HubServer) -> None:
    server.refuse = (403, "GatedRepo")
    result = cfgen("models", "pull", "owner/model")
    assert result.exit_code == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "hint"]
    envelope = json.loads(cfgen("models", "pull", "owner/model", "--json").stdout)
    assert (envelope["ok"], envelope["error"]["code"]) == (False, "checkpoint")


def test_a_killed_pull_goes_on_with_the_rest(
    cfgen: Run, server: HubServer, cache: Path, tmp_path: Path
) -> None:
    go_on = threading.Event()
    server.pause_after, server.pause = 200_000, go_on
    code = "from cfgen.cli.app import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "models", "pull", "owner/model/wan.safetensors"],
        cwd=tmp_path,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 30
        while not (parts := list(cache.rglob("*.incomplete"))) or parts[0].stat().st_size < 100_000:
            assert time.monotonic() < deadline, "nothing came"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = parts[0].stat().st_size
    server.pause_after = None
    go_on.set()
    result = cfgen("models", "pull", "owner/model/wan.safetensors")
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()).read_bytes() == FILES["wan.safetensors"]
    asked = server.asked_for("wan.safetensors")
    assert [request.headers.get("range") for request in asked] == [None, f"bytes={kept}-"]


def test_an_interrupt_says_that_what_came_is_kept(
    cfgen: Run, server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Fetching, step: Step) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fetching, "words", interrupted)
    result = cfgen("models", "pull", "owner/model")
    assert result.exit_code == 130
    assert "interrupted; the part of owner/model that is here stays" in result.stderr
    monkeypatch.undo()


def test_list_shows_the_box_and_the_cache_in_80_columns(
    cfgen: Run, server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    server.repos[LONG] = Repo({"w.gguf": MARK})
    server.repos["other/llm"] = Repo({"w.safetensors": b"model.layers.0.self_attn.q_proj"})
    for name in ("owner/model", LONG, "other/llm"):
        cfgen("models", "pull", name)
    result = cfgen("models", "list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["size", "files", "commit", "model"]
    assert lines[1].split()[-4:] == ["in", "the", "box", "mini"]
    at = lines.index(f"  {LONG}")
    assert lines[at - 1].split() == ["26", "B", "1", "c0ffee0"]
    assert "300.0 kB      2  c0ffee0     owner/model" in lines
    assert lines[-1] == f"cache: {cache}"
    assert "other/llm" not in result.stdout
    assert all(len(line) <= 80 for line in lines if line.strip() != LONG and "cache:" not in line)
    data = data_of(cfgen("models", "list", "--json"))
    assert [model["reference"] for model in data["models"]] == [LONG, "owner/model"]
    assert data["models"][1]["holds"] == ["generator"]
    assert [item["name"] for item in data["box"]] == ["mini"]


def test_list_needs_no_cache_and_tells_of_broken_downloads(
    cfgen: Run, server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cfgen("models", "list").stdout.splitlines()[-1] == f"cache: {cache}"
    monkeypatch.setattr("cfgen.hub.pull.RETRIES", -1)
    server.break_after = 1000
    failed = cfgen("models", "pull", "owner/model/wan.safetensors")
    assert failed.exit_code == 1
    assert "hint: run the same command again: it goes on from there" in failed.stderr
    told = cfgen("models", "list").stdout.splitlines()[-1]
    assert told == "1.0 kB of owner/model came before its download was broken off"


def test_verify_exits_with_1_and_its_commands_repair(cfgen: Run, cache: Path) -> None:
    path = Path(cfgen("models", "pull", "owner/model").stdout.strip())
    good = cfgen("models", "verify")
    assert (good.exit_code, good.stdout) == (0, "2 files checked, all whole\n")
    (path / "wan.safetensors").resolve().write_bytes(MARK + b"damaged")
    (path / "config.json").resolve().unlink()
    bad = cfgen("models", "verify", "owner/model")
    assert bad.exit_code == 1
    name = f"owner/model@{COMMIT}"
    assert bad.stdout.splitlines() == [
        f"missing: {name}/config.json",
        f"damaged: {name}/wan.safetensors",
        "fetch again with",
        f"  cfgen models pull {name}/config.json",
        f"  cfgen models pull {name}/wan.safetensors",
    ]
    envelope = json.loads(cfgen("models", "verify", "--json").stdout)
    assert envelope["ok"] is False
    assert envelope["data"]["files"]["damaged"] == [f"{name}/wan.safetensors"]
    for command in envelope["data"]["repair"]:
        assert cfgen(*command.split()[1:]).exit_code == 0
    assert cfgen("models", "verify", str(path)).exit_code == 0


def test_pull_warns_of_damage_that_it_repairs(cfgen: Run, cache: Path) -> None:
    path = Path(cfgen("models", "pull", "owner/model").stdout.strip())
    (path / "wan.safetensors").resolve().write_bytes(bytes(len(FILES["wan.safetensors"])))
    result = cfgen("models", "pull", "owner/model")
    assert "warning: wan.safetensors is damaged in the cache" in result.stderr
    assert (path / "wan.safetensors").read_bytes() == FILES["wan.safetensors"]


def test_verify_works_offline(
    cfgen: Run, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfgen("models", "pull", "owner/model")
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cfgen("models", "verify").exit_code == 0
    assert cfgen("models", "list").exit_code == 0
    assert server.requests == []


def test_remove_says_what_it_frees_and_asks(
    cfgen: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfgen("models", "pull", "owner/model")
    alone = cfgen("models", "remove", "owner/model")
    assert alone.exit_code == 3
    assert (
        f"cfgen cannot ask, so it removed nothing: owner/model, 300.0 kB in {cache}" in alone.stderr
    )

    class Terminal:
        isatty = staticmethod(lambda: True)

    monkeypatch.setattr(models_module, "sys", type("Sys", (), {"stdin": Terminal}))
    no = cfgen("models", "remove", "owner/model", stdin="n\n")
    assert (no.exit_code, no.stdout.splitlines()[-1]) == (0, "nothing was removed")
    assert f"remove owner/model, 300.0 kB in {cache}? [y/N]:" in no.stderr
    assert (cache / "models--owner--model").exists()
    yes = cfgen("models", "remove", "owner/model", stdin="y\n")
    assert yes.stdout.splitlines()[-1] == f"removed owner/model, 300.0 kB in {cache}"
    assert not (cache / "models--owner--model").exists()


def test_remove_takes_the_path_that_pull_printed(cfgen: Run, cache: Path) -> None:
    path = cfgen("models", "pull", "owner/model").stdout.strip()
    result = cfgen("models", "remove", path, "-y", "--json")
    assert result.exit_code == 0
    assert data_of(result) == {"removed": [path], "nbytes": sum(map(len, FILES.values()))}
    assert not Path(path).exists()


def test_remove_refuses_what_is_not_in_the_cache(
    cfgen: Run, server: HubServer, tmp_path: Path
) -> None:
    own = tmp_path / "weights.safetensors"
    own.write_bytes(b"mine")
    result = cfgen("models", "remove", str(own), "-y")
    assert result.exit_code == 3
    assert "files elsewhere are your own" in result.stderr
    assert own.read_bytes() == b"mine"
    assert cfgen("models", "remove", "owner/model", "-y").exit_code == 3
    assert cfgen("models", "remove", "mini", "-y").exit_code == 2


@pytest.mark.parametrize("command", ["list", "pull", "verify", "remove"])
def test_help_fits_80_columns(cfgen: Run, command: str) -> None:
    page = cfgen("models", command, "--help").stdout
    assert "Usage:" in page
    assert max(map(len, page.splitlines())) <= 80


# Progress in words


def listing_of(**nbytes: int) -> Listing:
    files = tuple(RemoteFile(path=p, nbytes=n, digest="0" * 64) for p, n in nbytes.items())
    hub = Hub(endpoint="http://hub", cache=Path("/nowhere"))
    return Listing(reference=Reference("o/n"), hub=hub, commit=COMMIT, files=files)


def test_progress_is_told_at_every_tenth_but_not_all_the_time() -> None:
    listing = listing_of(a=1_000_000, b=1_000_000)
    clock = [0.0]
    fetching = Fetching(listing, now=lambda: clock[0])
    told = []
    for file in listing.files:
        for nbytes in range(10_000, 1_000_001, 10_000):
            clock[0] += 0.2
            told.append(fetching.words(Step(what="fetch", file=file, nbytes=nbytes)))
    said = [words for words in told if words]
    assert len(said) == 10, said
    assert said[0] == "200.0 kB of 2.0 MB, 50.0 kB/s, ETA 0:36"
    assert said[-1] == "2.0 MB of 2.0 MB, 50.0 kB/s, ETA 0:00"


@pytest.mark.parametrize(
    ("after_s", "nbytes", "told"),
    [(1.9, 10**6, False), (2, 10**6, True)]
    + [(29, 1000, False), (31, 1000, True), (0.1, 2 * 10**6, True)],
)
def test_progress_waits_at_least_2_and_at_most_30_s(
    after_s: float, nbytes: int, told: bool
) -> None:
    listing = listing_of(a=2_000_000)
    clock = [0.0]
    fetching = Fetching(listing, now=lambda: clock[0])
    clock[0] = after_s
    words = fetching.words(Step(what="fetch", file=listing.files[0], nbytes=nbytes))
    assert bool(words) is told


def test_progress_counts_again_what_is_fetched_again() -> None:
    listing = listing_of(a=1000)
    fetching = Fetching(listing, now=iter(range(100)).__next__)
    (file,) = listing.files
    fetching.words(Step(what="fetch", file=file, nbytes=800))
    assert "connection broke at 800 B of a" in fetching.words(
        Step(what="retry", file=file, nbytes=800)
    )
    fetching.words(Step(what="fetch", file=file, nbytes=100))
    assert fetching.data()["nbytes"] == 100
    assert fetching.words(Step(what="check", file=file, nbytes=1000)) == ""


def test_a_preset_is_pulled_with_all_its_parts(
    cfgen: Run, server: HubServer, cache: Path, presets: Path
) -> None:
    shutil.copy(Path(__file__).parents[2] / "presets" / "longlive.yaml", presets)
    encoder = "models_t5_umt5-xxl-enc-bf16.pth"
    tokenizer = "google/umt5-xxl/tokenizer.json"
    server.repos["Wan-AI/Wan2.1-T2V-1.3B"] = Repo(
        {encoder: b"text", "Wan2.1_VAE.pth": b"vae", tokenizer: b"{}", "other.mp4": b"no"}
    )
    server.repos["Efficient-Large-Model/LongLive-1.3B"] = Repo(
        {"models/longlive_base.pt": b"base", "models/lora.pt": b"lora", "README.md": b"no"}
    )
    result = cfgen("models", "pull", "longlive")
    assert result.exit_code == 0, result.stderr
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in paths] == [
        "longlive_base.pt",
        "lora.pt",
        encoder,
        "umt5-xxl",
        "Wan2.1_VAE.pth",
    ]
    assert [path.read_bytes() for path in paths if path.is_file()] == [
        b"base",
        b"lora",
        b"text",
        b"vae",
    ]
    assert (paths[3] / "tokenizer.json").read_bytes() == b"{}"
    assert not list(cache.rglob("other.mp4"))
    assert not list(cache.rglob("README.md"))


def test_a_preset_in_the_box_needs_no_pull(cfgen: Run) -> None:
    result = cfgen("models", "pull", "mini")
    assert result.exit_code == 2
    assert "needs nothing from the hub" in result.stderr
