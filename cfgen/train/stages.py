"""What `cfgen train` can do: every stage with the sections of its values and what must come before.

A stage exists for a NAME if `train.NAME.yaml` has the section of the stage's name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cfgen.errors import CheckpointError, UsageError
from cfgen.files.writing import write_file
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.text_encoder import load_tokenizer
from cfgen.train.context_forcing.dmd import ScoreSettings
from cfgen.train.context_forcing.error_bank import ErrorSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.student_films import SampleSettings
from cfgen.train.context_forcing.student_parts import STUDENT, PromptSettings, build_student
from cfgen.train.context_forcing.student_settings import StudentSettings
from cfgen.train.context_forcing.student_stage import StudentStage
from cfgen.train.context_forcing.teacher_films import FilmWorldSettings
from cfgen.train.context_forcing.teacher_parts import TEACHER, build_teacher
from cfgen.train.context_forcing.teacher_stage import TeacherSettings, TeacherStage
from cfgen.train.data.clips import ClipSettings
from cfgen.train.decoder_stage import DecoderSettings, DecoderStage
from cfgen.train.export import Exporter
from cfgen.train.film_world import return_figures, return_probe
from cfgen.train.film_world.latents import LatentStore
from cfgen.train.film_world.return_memory import SlowFastSizes
from cfgen.train.flow_matching_settings import FlowMatchingSettings
from cfgen.train.flow_matching_stage import FlowMatchingStage
from cfgen.train.loop import Progress, train
from cfgen.train.plan import PlanSettings, model_of, plan_of
from cfgen.train.plan_text import device_rate, facts_of, text_of
from cfgen.train.processes import device_here
from cfgen.train.stage import LoopSettings, Stage
from cfgen.train.tokenizer_stage import TokenizerSettings, train_tokenizer
from cfgen.train.training_memory import MemorySettings
from cfgen.train.vae_stage import VaeSettings, VaeStage


@dataclass(frozen=True, slots=True)
class Job:
    """A stage that is to be done.

    Attributes:
        name: what is trained, the NAME of the command.
        stage: the stage.
        settings: an object of its class for each section of values.
        work: folder of states and models.
        minutes: after which to stop.
        start: a model folder to begin from, instead of what the stage begins from otherwise.
    """

    name: str
    stage: str
    settings: Mapping[str, Any]
    work: Path
    minutes: float
    start: Path | None = None

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.work / "model"

    @property
    def device(self) -> torch.device:
        """Where networks go."""
        return device_here()

    def has_begun(self) -> bool:
        """Whether there is a state to go on with."""
        return (self.work / self.stage / "state.json").exists()


@dataclass(frozen=True, slots=True)
class Result:
    """What a command prints at its end: a text for people, facts for programs."""

    text: str
    facts: Mapping[str, Any]


Report = Callable[[Progress], None]


Run = Callable[[Job, Report], Result]
"""Does a job for a while, reporting what it has got to; the same job again goes on."""


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage of the table.

    Attributes:
        sections: sections of the values that it reads, with their classes.
        run: does it.
        needs: files of the work folder that must be there, and the stages that make them; of
            stages that this NAME does not have, `start` may have what they would make.
        starts: whether it can begin from the weights of another model folder.
    """

    sections: Mapping[str, type]
    run: Run
    needs: Mapping[str, str] = field(default_factory=dict)
    starts: bool = True

    def check(self, job: Job) -> None:
        """Refuse a job whose earlier stages are missing, or that says what its stage cannot use.

        Raises:
            CheckpointError: names the first file that is missing and the stage that makes it.
            UsageError: the job has a `start`, of which the stage reads nothing.
        """
        if job.start is not None and not self.starts:
            raise UsageError(
                f"stage {job.stage} reads nothing of --start {job.start}: it works on {job.model}",
                "leave --start out",
            )
        for file, earlier in self.needs.items():
            if (job.work / file).is_file():
                continue
            makes = f"make it first: cfgen train {job.name} --stage {earlier} --work {job.work}"
            if earlier not in job.settings:
                if job.start is not None:
                    continue
                makes = f"put a model into {job.model}, or give its folder: --start FOLDER"
            raise CheckpointError(
                f"{job.work / file} is missing: stage {job.stage} needs it", makes
            )


@dataclass(frozen=True, slots=True)
class Learn:
    """Runs a stage in the training loop.

    Attributes:
        build: makes the stage.
        model: where in the work folder its model is exported.
    """

    build: Callable[[Job], Stage]
    model: str = "model"

    def __call__(self, job: Job, report: Report) -> Result:
        """See `Run`."""
        stage, step = self.build(job), 0
        loop = job.settings[f"{job.stage}.loop"]
        for progress in train(stage, job.work, loop, minutes=job.minutes):
            report(progress)
            step = progress.step
        model = str(job.work / self.model)
        return Result(model, {"model": model, "stage": job.stage, "step": step})


def _tokenizer(job: Job, _: Report) -> Result:
    s: TokenizerSettings = job.settings["tokenizer"]
    made = train_tokenizer(job.model, captions=s.captions, vocab_size=s.vocab_size)
    facts = {"model": str(job.model), "vocabulary": made.get_vocab_size()}
    return Result(str(job.model), facts)


def _vae(job: Job) -> VaeStage:
    stage = VaeStage(job.settings["vae"], job.model)
    if job.start is not None and not job.has_begun():
        stage.begin_from(job.start)
    return stage


def _base(job: Job) -> FlowMatchingStage:
    """Stage `base` on what the stages before it left in the model folder."""
    size: VaeSettings = job.settings["vae"]
    vae = job.model / "tae.safetensors"
    store = LatentStore.of_file(job.work / "latents", vae, width=size.width, height=size.height)
    stage = FlowMatchingStage(
        job.settings["base"],
        job.settings["base.memory"],
        store,
        load_tokenizer(job.model / "tokenizer" / "tokenizer.json"),
        Exporter(job.model, store.vae.spatial_stride),
    )
    if job.start is not None and not job.has_begun():
        stage.begin_from(job.start)
    return stage


def _decoder(job: Job) -> DecoderStage:
    """Stage `decoder` of the model that stage `base` left in the model folder."""
    return DecoderStage(job.settings["vae"], job.settings["decoder"], job.model)


def _teacher(job: Job) -> TeacherStage:
    """Stage `teacher` of the model that it starts from, which is the one of stage `base`."""
    return build_teacher(job.settings, job.start or job.model, job.work)


def _student(job: Job) -> StudentStage:
    """Stage `dmd` or `cdmd`, of the models that its values name."""
    return build_student(job.stage, job.settings, job.work, job.start)


def _probe(job: Job, report: Report) -> Result:
    """Run the return test for a while; the same job goes on, as long as the weights stay."""
    began = time.monotonic()
    wanted: return_probe.ProbeSettings = job.settings["probe"]
    sizes: SlowFastSizes = job.settings["probe.memory"]
    maker = return_probe.model_maker(
        return_probe.probed_model(job.model, wanted, job.device), sizes
    )
    folder = job.work / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{return_probe.digest_of(job.model, wanted, sizes)}.jsonl"
    for done, total in return_probe.scores(wanted, maker, file):
        spent = time.monotonic() - began
        report(Progress(done, total, spent, {}))
        if spent > 60 * job.minutes:
            break
    rows = return_figures.rows_of(return_probe.asked_of(wanted, file))
    facts = {"model": str(job.model), "stage": "probe", "scores": str(file), "rows": rows}
    write_file(folder / "returns.json", f"{json.dumps(facts, indent=1)}\n".encode(), shared=True)
    return Result(return_figures.table_of(rows), facts)


def planned(job: Job, rate: float | None) -> Result:
    """What a job will take of memory and time; no weight is read and nothing is written.

    Args:
        job: the stage.
        rate: TFLOP/s of a process; None: an estimate for the device that the values name.

    Raises:
        CheckpointError: the config.json of the model is damaged.
        UsageError: the stage has no plan, or the device is not known.
    """
    model = model_of(job.settings, job.start or job.model)
    plan = plan_of(job.stage, job.settings, model)
    facts = facts_of(job.stage, plan, model, device_rate(job.settings, rate))
    return Result(text_of(facts), facts)


_AUTOENCODER = {"model/tae.safetensors": "vae"}
_TOKENIZER = {"model/tokenizer/tokenizer.json": "tokenizer"}
_BASE = {"model/diffusion_pytorch_model.safetensors": "base"}

STAGES: Mapping[str, StageEntry] = {
    "tokenizer": StageEntry({"tokenizer": TokenizerSettings}, _tokenizer, starts=False),
    "vae": StageEntry({"vae": VaeSettings, "vae.loop": LoopSettings}, Learn(_vae)),
    "base": StageEntry(
        {
            "base": FlowMatchingSettings,
            "base.loop": LoopSettings,
            "base.memory": MemorySettings,
            "vae": VaeSettings,
        },
        Learn(_base),
        _AUTOENCODER | _TOKENIZER,
    ),
    "decoder": StageEntry(
        {"decoder": DecoderSettings, "decoder.loop": LoopSettings, "vae": VaeSettings},
        Learn(_decoder),
        _AUTOENCODER | _TOKENIZER | _BASE,
        starts=False,
    ),
    "teacher": StageEntry(
        {
            "teacher": TeacherSettings,
            "teacher.loop": LoopSettings,
            "teacher.memory": MemorySettings,
            "teacher.errors": ErrorSettings,
            "teacher.lora": LoraSettings,
            "teacher.world": FilmWorldSettings,
            "teacher.clips": ClipSettings,
            "vae": VaeSettings,
        },
        Learn(_teacher, f"teacher/{TEACHER}"),
        _BASE,
    ),
    **{
        stage: StageEntry(
            {
                stage: StudentSettings,
                f"{stage}.loop": LoopSettings,
                f"{stage}.score": ScoreSettings,
                f"{stage}.memory": MemorySettings,
                f"{stage}.slow_fast": SlowFastMemory,
                f"{stage}.lora": LoraSettings,
                f"{stage}.prompts": PromptSettings,
                f"{stage}.sample": SampleSettings,
            },
            Learn(_student, f"{stage}/{STUDENT}"),
        )
        for stage in ("dmd", "cdmd")
    },
    "probe": StageEntry(
        {"probe": return_probe.ProbeSettings, "probe.memory": SlowFastSizes}, _probe, starts=False
    ),
}
"""In the order in which they are done."""

SECTIONS: Mapping[str, type] = {
    section: kind for entry in STAGES.values() for section, kind in entry.sections.items()
} | {"plan": PlanSettings}
"""The class of every section of values."""
