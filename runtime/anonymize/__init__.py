"""What is taken out before anything comes to rest in the lake: ids, texts and images. See docs/privacy.md."""

from runtime.anonymize.ids import hashed
from runtime.anonymize.texts import text

__all__ = ["hashed", "text"]
