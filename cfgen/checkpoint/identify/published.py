"""What is published where: repositories of weights that cfgen meets, and some of their files.

A causal generator has the same tensors as the bidirectional one, so nothing in a file says how it
wants to be run; what it is called, where it came from and its digest may.
Sources: the model cards; sizes and SHA-256 as in Hugging Face's git-LFS records, each quoted alike
by public repositories that check their downloads against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SELF_FORCING = "self-forcing"
LONGLIVE = "longlive"
LONGLIVE_INFINITY = "longlive-infinity"
INFINITY_ROPE = "infinity-rope"
CAUSAL_FORCING = "causal-forcing"
CAUSAL_FORCING_1STEP = "causal-forcing-plus-1step"
CAUSAL_FORCING_2STEP = "causal-forcing-plus-2step"
CONTEXT_FORCING = "context-forcing"
CONTEXT_FORCING_PAPER = "context-forcing-paper"
SGF, SGF_FRAME = "sgf", "sgf-frame"
SGF_PLUS, SGF_PLUS_FRAME = "sgf-plus", "sgf-plus-frame"

APACHE, MIT, NON_COMMERCIAL = "apache-2.0", "mit", "cc-by-nc-sa-4.0"

BIDIRECTIONAL = "the bidirectional model: it makes no long videos before it is trained to be causal"
ROLLING = (
    "it denoises five chunks at once, each at another noise level, and cfgen denoises one at a time"
)
FRAME_WISE = "made for chunks of 1 latent frame: choose model.chunk_latent_frames=1 and its steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A repository of weights, or one file in it.

    Attributes:
        repo: owner/name on Hugging Face; on GitHub where it says so.
        file: path inside the repository, empty for whatever is in it.
        what: what it is, in words.
        licence: its licence as the repository tells it, empty if it tells none.
        recipes: presets made for it, the usual one first.
        note: what to know before it is used.
        unsupported: why no preset can run it, empty where one can.
    """

    repo: str
    what: str
    file: str = ""
    licence: str = ""
    recipes: tuple[str, ...] = ()
    note: str = ""
    unsupported: str = ""

    @property
    def name(self) -> str:
        """Repository and file."""
        return f"{self.repo} {self.file}".rstrip()

    @property
    def is_non_commercial(self) -> bool:
        """Whether its licence forbids commercial use."""
        return "-nc" in self.licence


REPOSITORIES = (
    Published(
        repo="gdhe17/Self-Forcing",
        what="Self-Forcing",
        licence=NON_COMMERCIAL,
        recipes=(SELF_FORCING,),
    ),
    Published(
        repo="gueraf/Self-Forcing-diffusers",
        what="Self-Forcing in diffusers' layout",
        licence=NON_COMMERCIAL,
        recipes=(SELF_FORCING,),
    ),
    Published(
        repo="Efficient-Large-Model/LongLive-1.3B",
        what="LongLive 1.0",
        licence=NON_COMMERCIAL,
        recipes=(LONGLIVE, LONGLIVE_INFINITY),
        note="its card puts the weights under CC BY-NC-SA 4.0; LongLive's code is Apache-2.0",
    ),
    Published(
        repo="daydreamlive/LongLive-1.3B",
        what="a mirror of LongLive 1.0",
        licence=NON_COMMERCIAL,
        recipes=(LONGLIVE, LONGLIVE_INFINITY),
    ),
    Published(
        repo="SOTAMak1r/Infinite-Forcing",
        what="Infinite-Forcing, which Infinity-RoPE runs with",
        recipes=(INFINITY_ROPE,),
    ),
    Published(
        repo="zhuhz22/Causal-Forcing",
        what="Causal Forcing",
        licence=APACHE,
        recipes=(CAUSAL_FORCING, INFINITY_ROPE),
    ),
    Published(
        repo="ShuoChen20/context_forcing",
        what="Context Forcing",
        licence=NON_COMMERCIAL,
        recipes=(CONTEXT_FORCING, CONTEXT_FORCING_PAPER),
    ),
    Published(
        repo="JunhaoZhuang/Self_Gradient_Forcing",
        what="Self Gradient Forcing",
        licence=APACHE,
        recipes=(SGF, SGF_FRAME),
    ),
    Published(
        repo="ZihanSu/Self_Gradient_Forcing_Plus",
        what="Self Gradient Forcing Plus",
        licence=APACHE,
        recipes=(SGF_PLUS, SGF_PLUS_FRAME),
    ),
    Published(
        repo="TencentARC/RollingForcing", what="a Rolling Forcing model", unsupported=ROLLING
    ),
    Published(repo="KlingTeam/MemFlow", what="MemFlow"),
    Published(
        repo="Wan-AI/Wan2.1-T2V-1.3B", what="Wan2.1 1.3B", licence=APACHE, note=BIDIRECTIONAL
    ),
    Published(
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        what="Wan2.1 1.3B in diffusers' layout",
        licence=APACHE,
        note=BIDIRECTIONAL,
    ),
    Published(
        repo="Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        what="Wan2.1 as ComfyUI loads it",
        licence=APACHE,
        note=BIDIRECTIONAL,
    ),
    Published(repo="calcuis/wan-1.3b-gguf", what="Wan2.1 1.3B in GGUF", note=BIDIRECTIONAL),
    Published(repo="city96/umt5-xxl-encoder-gguf", what="UMT5-XXL in GGUF", licence=APACHE),
    Published(repo="lightx2v/Autoencoders", what="LightX2V's small autoencoders", licence=APACHE),
)
"""Repositories, by whose names a file in the Hugging Face cache is known."""


def _file(repo: str, file: str, what: str, **more: object) -> Published:
    """A file with what is said of its repository, unless it differs."""
    home = next((r for r in REPOSITORIES if r.repo == repo), Published(repo=repo, what=what))
    facts: dict[str, object] = {
        "licence": home.licence,
        "recipes": home.recipes,
        "note": home.note,
        "unsupported": home.unsupported,
        **more,
    }
    return Published(repo=repo, file=file, what=what, **facts)  # type: ignore[arg-type]


_CAUSAL, _WAN = "zhuhz22/Causal-Forcing", "Wan-AI/Wan2.1-T2V-1.3B"
_LONGLIVE, _COMFY = "Efficient-Large-Model/LongLive-1.3B", "Comfy-Org/Wan_2.1_ComfyUI_repackaged"

DIGESTS: Mapping[str, Published] = {
    "a0413986d9734e02c09504e1520f5697ba6df731bb2f0f35577485e9cc8f56a3": _file(
        "gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt", "Self-Forcing by DMD"
    ),
    "10a2aa8fcf89c77d9033f4c117405412a690e289625766619d293f0c5a208ee7": _file(
        _LONGLIVE, "models/longlive_base.pt", "LongLive's base; its LoRA goes with it"
    ),
    "c4e43b87d62d4b0614b496773639f1ab170a7ee486dc23407901e9d3a5ebc07a": _file(
        _LONGLIVE, "models/lora.pt", "LongLive's LoRA, rank 256"
    ),
    "cf75ee5cc6f4e2e336c59c973f5544655d8f0aa481761efe6de1b9cb2eb0cd9d": _file(
        _CAUSAL, "chunkwise/causal_forcing.pt", "Causal Forcing, 4 steps"
    ),
    "70cae8c3b0b7191fa9840b4f6fe8655ba0cf5c6520c87ba85a46b861c3735cd3": _file(
        _CAUSAL, "framewise/causal_forcing.pt", "Causal Forcing, frame by frame", note=FRAME_WISE
    ),
    "8f899a016dffb9539788fac82c6200e43ef6e23b6e61ec6b885bb507a760ce42": _file(
        _CAUSAL,
        "causal-forcing++/framewise-2step.pt",
        "Causal Forcing++, 2 steps",
        recipes=(CAUSAL_FORCING_2STEP,),
    ),
    "bdb1b475fc88d528f510158a0990cd457f02c661b527ceb11ca9e4728533e2d0": _file(
        _CAUSAL,
        "causal-forcing++/framewise-1step.pt",
        "Causal Forcing++, 1 step",
        recipes=(CAUSAL_FORCING_1STEP,),
    ),
    "96b6b242ca1c2f24e9d02cd6596066fab6d310e2d7538f33ae267cb18d957e8f": _file(
        _WAN, "diffusion_pytorch_model.safetensors", "Wan2.1 1.3B"
    ),
    "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981": _file(
        _WAN, "Wan2.1_VAE.pth", "Wan2.1's autoencoder", note=""
    ),
    "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d": _file(
        _WAN, "models_t5_umt5-xxl-enc-bf16.pth", "UMT5-XXL, encoder only", note=""
    ),
    "be531024cd9018cb5b48c40cfbb6a6191645b1c792eb8bf4f8c1c6e10f924dc5": _file(
        _COMFY, "split_files/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors", "Wan2.1 1.3B"
    ),
    "2fc39d31359a4b0a64f55876d8ff7fa8d780956ae2cb13463b0223e15148976b": _file(
        _COMFY, "split_files/vae/wan_2.1_vae.safetensors", "Wan2.1's autoencoder", note=""
    ),
    "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68": _file(
        _COMFY,
        "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "UMT5-XXL in fp8, its tokenizer inside",
        note="",
    ),
    "d26151e76cdc2c9424bef988de874b33d9a53f30ef3060cd556c429c469c797e": _file(
        "madebyollin/taehv (GitHub)", "taew2_1.pth", "TAEHV for Wan2.1", licence=MIT
    ),
}
"""Files by their SHA-256."""

_ROLLING = "a Rolling Forcing model"
_SGF, _SGF_PLUS = "JunhaoZhuang/Self_Gradient_Forcing", "ZihanSu/Self_Gradient_Forcing_Plus"

FILES = (
    *DIGESTS.values(),
    _file(_SGF, "chunkwise/ar/model.pt", "Self Gradient Forcing", recipes=(SGF,)),
    _file(
        _SGF,
        "framewise/ar/model.pt",
        "Self Gradient Forcing, frame by frame",
        recipes=(SGF_FRAME,),
    ),
    _file(_SGF_PLUS, "chunkwise/model.pt", "Self Gradient Forcing Plus", recipes=(SGF_PLUS,)),
    _file(
        _SGF_PLUS,
        "framewise/model.pt",
        "Self Gradient Forcing Plus, frame by frame",
        recipes=(SGF_PLUS_FRAME,),
    ),
    _file(
        _CAUSAL,
        "chunkwise/longvideo.pt",
        _ROLLING,
        recipes=(),
        unsupported=ROLLING,
    ),
    _file("TencentARC/RollingForcing", "checkpoints/rolling_forcing_dmd.pt", _ROLLING),
)
"""Files by where they are published; of those that are not in `DIGESTS` no SHA-256 is known."""

HINTS: tuple[tuple[str, str], ...] = (
    (r"context-?forcing", "ShuoChen20/context_forcing"),
    (r"causal-?forcing", _CAUSAL),
    (r"infinit[ey]-?(forcing|rope)", "SOTAMak1r/Infinite-Forcing"),
    (r"long-?live", _LONGLIVE),
    (r"rolling-?forcing", "TencentARC/RollingForcing"),
    (r"self-?gradient-?forcing-?plus|(^|-)sgf-?plus", _SGF_PLUS),
    (r"self-?gradient-?forcing|(^|-)sgf(-|$)", _SGF),
    (r"self-?forcing", "gdhe17/Self-Forcing"),
)
"""What names of files and folders suggest, in lower case with `-` for `_`, space and dot."""


def by_digest(sha256: str) -> Published | None:
    """The published file of this SHA-256."""
    return DIGESTS.get(sha256)


def by_repository(repo: str) -> Published | None:
    """The repository owner/name; upper and lower case are the same, as on Hugging Face."""
    return next((r for r in REPOSITORIES if r.repo.lower() == repo.lower()), None)


def by_name(name: str) -> Published | None:
    """The repository that the name of a file or folder suggests."""
    plain = re.sub(r"[-_. ]+", "-", name.lower())
    repo = next((repo for pattern, repo in HINTS if re.search(pattern, plain)), None)
    return by_repository(repo) if repo else None
