"""Codebook arithmetic: codes 0..codebook_size-1 to ids and back (facts: codebook k begins at its own id)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from yue_core.song import Codes
from yue_core.text.vocabulary import Vocabulary


def codes_to_ids(codes: Codes, vocabulary: Vocabulary) -> list[int]:
    """Ids of codes [K, T] frame by frame [T*K]; row k is codebook k. ValueError for codes that are none."""
    if codes.size and (codes.min() < 0 or codes.max() >= vocabulary.codebook_size):
        raise ValueError(f"codes go from {codes.min()} to {codes.max()}, not 0 to {vocabulary.codebook_size - 1}")
    ids: list[int] = (codes.astype(np.int64) + _starts(len(codes), vocabulary)).T.reshape(-1).tolist()
    return ids


def ids_to_codes(ids: Sequence[int] | NDArray[np.integer], codebooks: int, vocabulary: Vocabulary) -> Codes:
    """Codes [K, T] of ids [T*K], the inverse of `codes_to_ids`; ValueError for an id of a wrong codebook."""
    frames = np.asarray(ids, dtype=np.int64)
    if frames.size % codebooks:
        raise ValueError(f"{frames.size} ids are no whole frames of {codebooks} codebooks")
    codes = frames.reshape(-1, codebooks).T - _starts(codebooks, vocabulary)  # [K, T]
    wrong = (codes < 0) | (codes >= vocabulary.codebook_size)
    if wrong.any():
        k, frame = np.argwhere(wrong)[0]
        raise ValueError(f"id {frames[frame * codebooks + k]} in frame {frame} is not of codebook {k}")
    return codes.astype(np.int16)


def _starts(codebooks: int, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """First id of each codebook [K, 1]."""
    return np.array([[vocabulary.codebook(k).start] for k in range(codebooks)], dtype=np.int64)
