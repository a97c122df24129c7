"""A student with its teacher and critic, from model folders and the values of its sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cfgen.checkpoint.networks.fill import config_of, open_generator, text_len_of
from cfgen.checkpoint.networks.geometry import read_geometry, vae_stride
from cfgen.checkpoint.networks.model_files import ModelFiles, find_files, generator_file
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.checkpoint.networks.vae import load_vae
from cfgen.errors import CheckpointError, UsageError
from cfgen.files.reading import read_bytes
from cfgen.files.writing import write_file
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.patches import LARGER, embedding_name
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import SPATIAL_STRIDE, TinyAutoencoder
from cfgen.train.context_forcing.dmd import ScoreSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.roles import Role
from cfgen.train.context_forcing.scripts import FilmWorldScripts, PromptScripts, Scripts
from cfgen.train.context_forcing.student_films import SampleSettings, StudentFilms
from cfgen.train.context_forcing.student_memory import Memories, drawn_memories, own_memories
from cfgen.train.context_forcing.student_settings import StudentSettings
from cfgen.train.context_forcing.student_stage import StudentParts, StudentStage
from cfgen.train.context_forcing.teacher_parts import TeacherExporter
from cfgen.train.context_forcing.window_cut import Reencode, reencoder
from cfgen.train.data.prompts import read_prompts
from cfgen.train.film_world.latents import CHUNK_LATENTS
from cfgen.train.film_world.return_memory import SlowFastSizes
from cfgen.train.processes import device_here
from cfgen.train.stage import LoopSettings
from cfgen.train.training_memory import MemorySettings

STUDENT = "model"
"""Where in the stage's folder the student is written."""

BESIDE = ("tae.safetensors", "tokenizer/tokenizer.json", "mini.json")
"""Files of a model of cfgen's own that a student has from the model it begins as."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """A list of prompts to roll out, instead of films of the film world.

    Attributes:
        file: text, one prompt a line.
    """

    file: str


def build_student(
    stage: str, settings: Mapping[str, Any], work: Path, start: Path | None
) -> StudentStage:
    """Stage `dmd` or `cdmd`.

    Args:
        stage: which of them.
        settings: an object of its class for each section of values.
        work: folder of states and models, from which the paths in the values go on.
        start: the model that the student begins as, instead of that of the values.

    Raises:
        CheckpointError: a model is missing, damaged or of another kind.
        UsageError: the prompts cannot be read.
    """

    def section(name: str, default: object) -> Any:
        return settings.get(f"{stage}.{name}", default)

    values: StudentSettings = settings[stage]
    loop: LoopSettings = settings[f"{stage}.loop"].settled(device_here())
    lora: LoraSettings = section("lora", LoraSettings())
    begin = start or _model(work, values.student, stage, "student")
    whole = work / "model"  # a student of an earlier stage may be a generator alone
    files = replace(find_files(whole if whole.is_dir() else begin), generator=generator_file(begin))
    encoder = load_text_encoder(
        files.text_encoder,
        files.tokenizer,
        text_len=text_len_of(files.generator),
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        expand=True,
    )
    memory: SlowFastMemory | None = section("slow_fast", None)
    drawn: MemorySettings = section("memory", MemorySettings())
    score: ScoreSettings = section("score", ScoreSettings())
    frozen = torch.bfloat16 if loop.precision == "bf16" else torch.float32
    parts = StudentParts(
        student=Role.learning(files.generator, lora, seed=1),
        teacher=Role.frozen(_model(work, values.teacher, stage, "teacher"), frozen),
        critic=Role.learning(_model(work, values.critic, stage, "critic"), lora, seed=2),
        text_encoder=encoder,
        scripts=_scripts(settings.get(f"{stage}.prompts")),
        memories=_memories(memory, drawn),
        export=StudentExporter(
            begin, work / stage / STUDENT, values, encoder, lora, _patches(memory, drawn)
        ),
        sample=_films(
            files,
            work / stage / "films",
            section("sample", SampleSettings(films=0)),
            drawn,
            encoder,
            values.latent_size,
        ),
        reencode=_reencode(files, values, score),
    )
    return StudentStage(stage, values, score, parts)


def _reencode(files: ModelFiles, values: StudentSettings, score: ScoreSettings) -> Reencode | None:
    """What makes the first latent of a contiguous context.

    Raises:
        UsageError: the values have no such context, or one that begins within a chunk.
    """
    if values.first_latent == "keep":
        return None
    if score.context != "contiguous" or score.context_frames % CHUNK_LATENTS:
        raise UsageError(
            "first_latent reencode is for scores after a contiguous context of whole chunks, got "
            f"context {score.context} of {score.context_frames} latent frames",
            f"set score.context to contiguous and score.context_frames to a multiple of "
            f"{CHUNK_LATENTS}",
        )
    return reencoder(load_vae(files.vae, device=device_here()))


def _model(work: Path, name: str, stage: str, role: str) -> Path:
    """The model of a role."""
    path = work / name
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: stage {stage} needs it as its {role}",
            f"train the stage that makes it first, or set {stage}.{role}",
        )
    return path


def _scripts(prompts: PromptSettings | None) -> Scripts:
    return (
        FilmWorldScripts() if prompts is None else PromptScripts(read_prompts(Path(prompts.file)))
    )


def _memories(policy: SlowFastMemory | None, drawn: MemorySettings) -> Memories:
    return drawn_memories(drawn) if policy is None else own_memories(policy)


def _patches(policy: SlowFastMemory | None, drawn: MemorySettings) -> tuple[int, ...]:
    """Patches, larger than the chunk's, that the memories of rollouts read."""
    return drawn.patches if policy is None else ()


def _films(
    files: ModelFiles,
    folder: Path,
    wanted: SampleSettings,
    memory: MemorySettings,
    encoder: TextEncoder,
    latent_size: tuple[int, int],
) -> StudentFilms | None:
    """What makes films on the way, for models of the film world."""
    if not wanted.films:
        return None
    vae = load_vae(files.vae)
    if not isinstance(vae, TinyAutoencoder):
        raise CheckpointError(
            f"{files.vae} is no autoencoder of the film world, of which samples are made",
            "set sample.films to 0",
        )
    sizes = SlowFastSizes(sink=memory.sink, slow=memory.slow, fast=memory.fast)
    return StudentFilms(folder, wanted, sizes, vae, encoder, latent_size)


@dataclass(frozen=True, slots=True)
class StudentExporter:
    """Writes a student as a folder to render with, and how it is to be rendered.

    Attributes:
        begin: the model that it began as, a folder or a file.
        folder: the model folder.
        settings: tell the noise levels.
        text_encoder: written beside a model of cfgen's own.
        lora: of the student's factors.
        patches: larger patches that its training read; kernels of others are left out, as they
            would be those of the model it began as.
    """

    begin: Path
    folder: Path
    settings: StudentSettings
    text_encoder: TextEncoder
    lora: LoraSettings
    patches: tuple[int, ...] = ()

    def __call__(self, weights: Mapping[str, Tensor]) -> None:
        """Write the model folder, and `render.yaml` beside it for `cfgen render --config`.

        Raises:
            OutputRefused: a file cannot be written.
        """
        network = open_generator(self.begin)
        config = config_of(network.file.path)
        beside = [name for name in BESIDE if (self.begin / name).is_file()]
        stride = vae_stride(config) or SPATIAL_STRIDE
        untaught = tuple(f"{embedding_name(n)}." for n in LARGER if n not in self.patches)
        TeacherExporter(
            self.folder,
            read_geometry(network.shapes, config, weights=network.file.path),
            stride,
            self.lora,
            self.text_encoder if beside else None,
            recipe="mini",
        )({name: w for name, w in weights.items() if not name.startswith(untaught)})
        for name in beside:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, read_bytes(self.begin / name), shared=True)
        s = self.settings
        schedule = {
            "timesteps": list(s.timesteps),
            "shift": s.shift,
            "warp": True,
            "renoise": "fresh",
            "guidance": 1.0,
        }
        rows, columns = (stride * cells for cells in s.latent_size)
        model = {"path": str(self.folder.absolute()), "sizes": [f"{columns}x{rows}"]}
        facts = {"model": model, "schedule": schedule}
        text = yaml.safe_dump(facts, sort_keys=False)
        write_file(self.folder.parent / "render.yaml", text.encode(), shared=True)
