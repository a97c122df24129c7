"""Prompts to embeddings: a UMT5 encoder and its tokenizer file, through Hugging Face's libraries.

Source: Wan2.1 wan/modules/t5.py @ 9737cba: special tokens are added, positions past the text are
zero.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from cfgen.errors import CheckpointError, UsageError


class TextEncoder(nn.Module):
    """A UMT5 encoder with its tokenizer.

    Args:
        config: sizes, in Hugging Face's keys.
        tokenizer: the loaded tokenizer.json.
        text_len: positions of an embedded prompt.
    """

    def __init__(
        self, config: Mapping[str, object], tokenizer: Tokenizer, *, text_len: int
    ) -> None:
        super().__init__()
        self.model = UMT5EncoderModel(UMT5Config.from_dict(dict(config)))
        self.tokenizer = tokenizer
        self.text_len = text_len
        end = tokenizer.token_to_id("</s>")
        if end is None:
            raise CheckpointError(
                "the tokenizer has no </s> token", "give the tokenizer that belongs to the encoder"
            )
        self._end: int = end

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of a prompt, the end token last.

        Raises:
            UsageError: they are more than `text_len`.
        """
        text = clean(prompt)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        room = self.text_len - 1
        if len(encoding.ids) > room:
            read = text[: encoding.offsets[room - 1][1]]
            raise UsageError(
                f"the prompt is too long: {len(encoding.ids)} tokens, and this model reads {room}",
                f'shorten it; the model would read up to "...{read[-30:]}"',
            )
        return [*encoding.ids, self._end]

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [len(prompts), text_len, d_model]; zero past each prompt's tokens."""
        device = self.model.shared.weight.device
        tokens = [self.tokens(prompt) for prompt in prompts]
        longest = max(len(t) for t in tokens)
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        mask = torch.zeros(len(tokens), longest, dtype=torch.long)
        for i, numbers in enumerate(tokens):
            ids[i, : len(numbers)] = torch.tensor(numbers)
            mask[i, : len(numbers)] = 1
        ids, mask = ids.to(device), mask.to(device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.pad(hidden * mask[..., None], (0, 0, 0, self.text_len - longest))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json file.

    Raises:
        CheckpointError: the file is missing or not a tokenizer.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the text encoder needs its tokenizer", "restore the model folder"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is not a tokenizer file: {error}", "restore the model folder"
        ) from error


def clean(prompt: str) -> str:
    """HTML entities resolved, runs of whitespace made one space, as Wan does with its prompts."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
