"""Prompts to embeddings: a UMT5 encoder and its tokenizer, through Hugging Face's libraries.

Source: Wan2.1 wan/modules/{t5,tokenizers}.py and wan/text2video.py @ 9737cba: prompts are cleaned,
`</s>` is added, positions past the text are zero.
"""

from __future__ import annotations

import bisect
import html
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cfgen.errors import CheckpointError, UsageError
from cfgen.model.tokenizer import END, OTHER_TOKENIZER, Tokenizer, load_tokenizer, numbers_of

__all__ = ["TextEncoder", "clean", "load_tokenizer"]


class TextEncoder(nn.Module):
    """A UMT5 encoder with its tokenizer.

    Args:
        config: sizes, in Hugging Face's keys.
        tokenizer: the tokenizer that belongs to it.
        text_len: positions of an embedded prompt.
    """

    def __init__(
        self, config: Mapping[str, object], tokenizer: Tokenizer, *, text_len: int
    ) -> None:
        from transformers import UMT5Config, UMT5EncoderModel

        super().__init__()
        self.model = UMT5EncoderModel(UMT5Config.from_dict(dict(config)))
        self.tokenizer = tokenizer
        self.text_len = text_len
        end = tokenizer.token_to_id(END)
        if end is None or end >= self.model.config.vocab_size:
            raise CheckpointError(f"the tokenizer has no {END} token", OTHER_TOKENIZER)
        self._end: int = end

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of a prompt, the end token last.

        Raises:
            UsageError: they are more than `text_len`.
        """
        text = clean(prompt)
        ids = self._numbers(text)
        room = self.text_len - 1
        if len(ids) > room:
            read = self._beginning(text, room)
            raise UsageError(
                f"the prompt is too long: {len(ids)} tokens, and this model reads {room}",
                f'shorten it; the model would read up to "...{read[-30:]}"',
            )
        return [*ids, self._end]

    def _numbers(self, text: str) -> Sequence[int]:
        return numbers_of(self.tokenizer, text, rows=self.model.config.vocab_size)

    def _beginning(self, text: str, room: int) -> str:
        """As much of a text that is too long as has `room` tokens: whole words, then characters."""

        def count(end: int) -> int:
            return len(self._numbers(text[:end]))

        words = [0, *(word.end() for word in re.finditer(r"\S+", text))]
        fitting = bisect.bisect(words, room, key=count)
        start, end = words[fitting - 1], words[fitting]
        return text[: start + bisect.bisect(range(start + 1, end), room, key=count)].rstrip()

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [len(prompts), text_len, d_model]; zero past each prompt's tokens."""
        device = self.model.encoder.final_layer_norm.weight.device
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


def clean(prompt: str) -> str:
    """Text as Wan cleans its prompts: mojibake mended, HTML entities resolved, single spaces."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()
