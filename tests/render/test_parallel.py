"""One film in several processes on the CPU (gloo): the very latents of one process, bit by bit.

Bits are the same where heads have a multiple of 16 channels: a vectorized loop over fewer channels
ends in a remainder, which is not rounded as the rest is. In float64 the products of matrices depend
on the number of their rows, and the mean key of a page in 8 bits on the number of heads beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.errors import Halt, ProcessLost, SetupError, UsageError
from cfgen.model.generator import Generator, WanConfig
from cfgen.parallel.heads import HeadParallel
from cfgen.parallel.launch import launched
from cfgen.pipeline import parallel
from cfgen.pipeline.build import ModelCache, build_source
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.parallel import Peers
from cfgen.pipeline.parallel_plan import shares_of
from cfgen.renderer.events import ChunkDone, Resumed
from tests.render.film import FOUR_SHOTS, MEMORIES, Film, MakeFilm

SURPRISED = ["memory.admits=first", "memory.slow=2", "memory.tau=1"]
CASES = {
    "release": MEMORIES["release"],
    "one decision": ["memory.variant=cfgen", *SURPRISED, "memory.admission_layers=[0,1]"],
    "relax": MEMORIES["relax"],
    "window-top": MEMORIES["window-top"],
    "window-first-steps": MEMORIES["window-first-steps"],
    "int8": ["memory.kv_cache=int8"],
    "fp8": ["memory.kv_cache=fp8", "dtype=float32"],
    "reference": ["backend=reference", *SURPRISED],
    "guidance": ["schedule.guidance=3", "dtype=float32"],
    "shots": [FOUR_SHOTS, "memory.policy=window", "memory.size=9"],
}
IN_FOUR = ("release", "relax", "fp8", "reference", "shots")
MINI = ["threads=1", "schedule.timesteps=[1000, 500]"]


@pytest.fixture(scope="session")
def four_heads(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a Wan of random weights and four heads of 16 channels."""
    folder = tmp_path_factory.mktemp("four") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"dim": 64, "ffn_dim": 96, "num_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    known = {field.name for field in fields(WanConfig)} - {"patch_size"}
    generator = Generator(WanConfig(**{name: config[name] for name in known & set(config)}))
    save_file(generator.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def film(film: MakeFilm, four_heads: Path) -> MakeFilm:
    return replace(film, settings=[*film.settings, f"model.path={four_heads}"])


@pytest.fixture(scope="module")
def together() -> Iterator[ModelCache]:
    """Processes that stay from one film to the next, as in a batch."""
    models = ModelCache()
    yield models
    models.peers.close()


def _shared(settings: list[str], processes: int) -> list[str]:
    return [*settings, f"placement.parallel={processes}"]


def _made(job: RenderJob, models: ModelCache) -> tuple[torch.Tensor, int]:
    """The latents of a film, and bytes of this process's part of the KV cache."""
    source = build_source(job, models)
    with closing(source):
        latents = torch.cat([chunk.latents for chunk in source.make(source.plan.order)], 1)
    return latents, source.memory.pool.nbytes


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, 2) for name in CASES), *((name, 4) for name in IN_FOUR)]
)
def test_processes_make_the_latents_of_one(
    film: MakeFilm, together: ModelCache, name: str, processes: int
) -> None:
    settings = CASES[name]
    config = film(*settings).config
    alone, whole = _made(RenderJob(config), film.filmed.models)
    shared, part = _made(RenderJob(film(*_shared(settings, processes)).config), together)
    # In float32, some CPUs round a product by its number of rows; with one head a process, an 8-bit
    # page's mean key is summed in another order.
    apart = 1e-5 if Runtime.of(config).dtype == torch.float32 else 0.0
    torch.testing.assert_close(shared, alone, rtol=0, atol=apart)
    assert part * processes == whole


@pytest.mark.slow
def test_the_model_in_the_box_is_shared_out(tiny_settings: list[str], together: ModelCache) -> None:
    def job(processes: int) -> RenderJob:
        values = {"prompt": "a blue kite by day", "duration": "0.8s", "seed": "3"}
        return RenderJob(load(values, assignments=_shared(MINI, processes)).config)

    alone, _ = _made(job(1), ModelCache())
    apart = 1e-5 if Runtime.of(job(1).config).dtype == torch.float32 else 0.0
    for processes in (2, 4):
        shared, _ = _made(job(processes), together)
        torch.testing.assert_close(shared, alone, rtol=0, atol=apart)


def test_heads_that_do_not_divide_are_refused(film: MakeFilm) -> None:
    with pytest.raises(UsageError, match="among 3 processes; they can be among 1, 2 or 4") as told:
        build_source(RenderJob(film("placement.parallel=3").config))
    assert told.value.hint == "use --parallel 2"


def test_the_plan_tells_what_each_process_has() -> None:
    values = {"prompt": "a blue kite by day", "duration": "30s", "seed": "3"}
    config = load(values, assignments=[*_shared(["dtype=bfloat16"], 4)]).config
    shares = shares_of(RenderJob(config))
    assert shares is not None
    page = 60 * 256 * 2 * 2  # tokens of a frame, channels, keys and values, bytes of a number
    layers, passes, pages = 6, 4 + 1, 3 + 12 + 6 + 1
    assert (shares.heads, shares.tokens, shares.kv_nbytes) == (4, 180, layers * pages * page)
    sent = layers * passes * 45 * 4 * 256 * 2 * 3 // 4  # of q, k, v and the output, to three others
    assert shares.exchanged_nbytes == sent
    lines = CliRunner().invoke(app, ["plan", "--duration", "30s", "--parallel", "4"]).stdout
    assert "parallel  4 processes, each with 1 of 4 attention heads and about 45 of" in lines


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
@pytest.mark.parametrize("memory", ["release", pytest.param("cfgen", marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on(
    film: MakeFilm, together: ModelCache, memory: str, before: int, after: int
) -> None:
    """From a snapshot, which holds all heads whoever took it; the rest is committed again."""
    cut = film(*_shared(MEMORIES[memory], before))
    cut.models = together
    cut.until(5)
    on = Film(cut.folder, _shared(cut.settings, after), together)
    events = on.go_on()
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert resumed.snapshot == 4
    assert [event.index for event in events if isinstance(event, ChunkDone)] == [5, 6, 7]
    assert on.video == film.expected(*MEMORIES[memory])


def test_a_process_that_is_killed_is_told_of_and_the_film_goes_on(
    film: MakeFilm, together: ModelCache
) -> None:
    together.peers.close()  # a process is in one group at a time
    cut, models = film("placement.parallel=2"), ModelCache()
    cut.models = models

    def render() -> None:
        for event in cut.events(resume=False):
            if isinstance(event, ChunkDone) and event.index == 3:
                os.kill(models.peers._children[0].pid, signal.SIGKILL)

    with pytest.raises(ProcessLost, match="ended, or cannot be reached"):
        render()
    models.peers.close()
    on = Film(cut.folder, film("placement.parallel=1").settings, film.filmed.models)
    on.go_on()
    assert on.video == film.expected()


def test_a_chunk_that_is_left_in_its_middle_keeps_nobody_waiting(
    film: MakeFilm, together: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a second Ctrl-C: the other process waits in the chunk, and hears nothing."""
    together.peers.close()
    models = ModelCache()
    source = build_source(RenderJob(film("placement.parallel=2").config), models)
    making, (child,) = source.making(), models.peers._children

    def halted(*_: object) -> None:
        raise Halt(signal.SIGINT)

    monkeypatch.setattr(HeadParallel, "by_tokens", halted)
    with pytest.raises(Halt):
        making.start(0)
    source.close()
    models.peers.close()
    assert child.returncode == -signal.SIGKILL


def test_a_process_has_one_group_at_a_time(film: MakeFilm, together: ModelCache) -> None:
    build_source(RenderJob(film("placement.parallel=2").config), together).close()
    with pytest.raises(SetupError, match="renders a film together with others already"):
        build_source(RenderJob(film("placement.parallel=2").config), ModelCache())


def test_a_process_that_does_not_start_is_told_of(
    film: MakeFilm, together: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    together.peers.close()
    monkeypatch.setattr(parallel.sys, "executable", shutil.which("false"))
    with pytest.raises(ProcessLost, match="process 2 of 2 did not start"):
        build_source(RenderJob(film("placement.parallel=2").config), ModelCache())


def test_gpus_are_counted_before_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SetupError, match="--parallel 4 needs as many GPUs, and torch sees 2"):
        Peers().group(4, torch.device("cuda"))


def test_processes_that_make_clips_of_their_own_start_no_more(
    together: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `torchrun -m cfgen batch`."""
    together.peers.close()
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match="each make clips of their own, and --parallel 2"):
        Peers().group(2, torch.device("cpu"))


LAUNCHER = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


def test_what_a_launcher_tells_is_read() -> None:
    assert launched({}) is None
    assert launched(LAUNCHER | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert launched(LAUNCHER) == (1, 4, 1)
    assert launched(LAUNCHER | {"LOCAL_RANK": "0"}) == (1, 4, 0)
    with pytest.raises(UsageError, match="RANK=x is no number"):
        launched(LAUNCHER | {"RANK": "x"})


def test_a_launcher_says_how_many_processes_there_are(film: MakeFilm) -> None:
    peers = Peers(launched(LAUNCHER))
    assert peers.joined(film().config).placement.parallel == 4
    with pytest.raises(UsageError, match="started 4 processes, and --parallel asks for 2"):
        peers.joined(film("placement.parallel=2").config)


@pytest.mark.slow
@pytest.mark.parametrize("dry", [False, True])
def test_torchrun_starts_a_render(film: MakeFilm, tmp_path: Path, dry: bool) -> None:
    made = film()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    argv += ["--master-port", str(port), "-m", "cfgen", "render", "a red balloon"]
    argv += ["--preset", "mini"]
    argv += [part for each in made.settings for part in ("--set", each)]
    video = tmp_path / "launched.mp4"
    argv += [
        "--duration",
        "0.8s",
        "--seed",
        "3",
        "-o",
        str(video),
        "-v",
        *["--dry-run"][: int(dry)],
    ]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert video.exists() != dry
    if dry:
        assert "parallel  2 processes" in done.stdout
