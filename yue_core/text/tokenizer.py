"""Text to ids (facts: mm tokenizer)."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from yue_core.errors import WeightsError


class Tokenizer:
    """The published SentencePiece model, for text alone.

    Control tokens are added to prompts by id. A string such as `<SOA>` or `</s>` in a user's text is plain
    text: SentencePiece makes no control token from text, and nothing here looks for their names as upstream's
    wrapper does.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"The tokenizer {path} cannot be read, fetch it again: {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text; a lone surrogate, which no file can hold, counts as a question mark."""
        ids: list[int] = self._model.encode(text.encode("utf-8", "replace").decode("utf-8"))
        return ids
