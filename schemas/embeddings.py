"""Widths of the vectors that are kept. Another model needs another column: see CONTRIBUTING.md."""

from __future__ import annotations

#: Of an instruction: all-MiniLM-L6-v2.
INSTRUCTION_EMBEDDING_DIM = 384
#: Of an image: CLIP ViT-B/32.
IMAGE_EMBEDDING_DIM = 512
