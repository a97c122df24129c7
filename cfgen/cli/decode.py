"""`cfgen decode`: a finished video again, from its latents, as another file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli import options
from cfgen.cli.branch import Parent
from cfgen.cli.command import MODEL, OUTPUT
from cfgen.cli.run_render import run_render
from cfgen.config.keys import FLAGS
from cfgen.pipeline.runs import run_folder
from cfgen.video.formats import ENDINGS

app = options.command_app()

NewVideo = Annotated[
    Path, options.option("-o, --output", "FILE", OUTPUT, f"The new video, an {ENDINGS}.")
]
Tile = Annotated[
    str | None,
    options.option(
        "--vae-tile",
        "CELLS",
        MODEL,
        "Latent cells on the side of the tiles that frames are decoded in, at least 16.  "
        "[default: that of the run; key: model.vae_tile]",
    ),
]


@app.command()
@options.takes(*options.DECODED, *options.SHOWN)
def decode(
    ctx: typer.Context,
    run: Parent,
    output: NewVideo,
    tile: Tile = None,
    *,
    yes: bool,
    allow_changed: list[str] | None,
) -> None:
    """Decode a finished video again, from the latents that its run folder keeps.

    The generator is not loaded, and need not be there. What is not asked for is as it was; in a
    file of another kind, how it is encoded is what that kind has by default. The sound goes along.
    The same command goes on after any interruption, and so does cfgen resume.

    \b
    Examples:
      cfgen decode a.mp4 -o a.mov --codec prores
      cfgen decode a.mp4 -o frames.png --bits 16
      cfgen decode a.cfgen -o b.mp4 --vae Wan2.1_VAE.pth --vae-tile 32 --quality best
      cfgen decode a.mp4 -o with-music.mp4 --audio music.wav --audio-fade 2s
    """
    console = options.console_of(ctx)
    from cfgen.pipeline.decoding import decode_again

    given = {param.opts[-1]: ctx.params[str(param.name)] for param in ctx.command.params}
    flags = {key: given[flag] for key, flag in FLAGS.items() if flag in given and key != "output"}
    changes = {key: _text(value) for key, value in {**flags, "model.vae_tile": tile}.items()}
    rendering = decode_again(
        run_folder(run),
        output=output,
        changes=changes,
        overwrite=yes,
        allow_changed=frozenset(allow_changed or ()),
    )
    run_render(console, rendering)


def _text(value: object) -> str | None:
    """What a flag was given, None if it was not."""
    if isinstance(value, bool):
        return "true" if value else None
    return None if value is None else str(value)
