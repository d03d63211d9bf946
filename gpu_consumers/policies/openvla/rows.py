"""How the decoder's input rows are laid out: begin token, patches, text, with padding on the left."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def lay_out(
    prompts: Sequence[Sequence[int]], patches: int, *, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words (batch, longest), places and mask (batch, longest + patches) of prompts that begin with the begin token.

    Each place is an index into a zero, the row's words and its patches, one after another. All rows end together;
    padding is masked and takes no positions, so that a row is what it would be alone. multiple: the longest prompt is
    padded up to one of it, for fewer different shapes.
    """
    longest = -(-max(map(len, prompts)) // multiple) * multiple
    words = torch.zeros(len(prompts), longest, dtype=torch.long)
    places = torch.zeros(len(prompts), longest + patches, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        words[index, : len(prompt)] = torch.tensor(prompt)
        first_word, first_patch = 1, 1 + longest
        row = [
            first_word,
            *range(first_patch, first_patch + patches),
            *range(first_word + 1, first_word + len(prompt)),
        ]
        places[index, -len(row) :] = torch.tensor(row)
    return words, places, (places > 0).long()
