"""What stage 1 wrote, as tracks of codes and back."""

from __future__ import annotations

import numpy as np
import pytest

from yue_core.song import Sampling
from yue_core.stage1 import Take, section_ids, song_tokens, split_tracks
from yue_core.text.prompt import Prompt
from yue_core.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    start_of_audio=1, end_of_audio=2, stage_1=3, stage_2=4, xcodec=5,
    codebook_start=20, codebook_size=16, num_codebooks=4, stage1_size=90, stage2_size=90,
)  # fmt: skip
PROMPT = Prompt(head=(70,), sections=((60, 1, 5), (81, 61, 1, 5)), border=(81,))


@pytest.mark.parametrize(
    ("codes", "vocals", "instrumental"),
    [
        ([1, 2, 3, 4], [1, 3], [2, 4]),
        ([1, 2, 3], [1, 3], [2, 2]),
        ([7], [7], [7]),
        ([], [], []),
    ],
)
@pytest.mark.parametrize("closing", [[], [2]])
def test_fault_19_half_a_frame_keeps_its_sung_code(
    codes: list[int], vocals: list[int], instrumental: list[int], closing: list[int]
) -> None:
    ids = [VOCABULARY.codebook_start + code for code in codes] + closing
    tracks = split_tracks(ids, VOCABULARY)
    assert [track.tolist() for track in tracks] == [vocals, instrumental]
    assert [track.dtype for track in tracks] == [np.int16, np.int16]


def test_fault_20_vocals_come_first_and_instrumental_second() -> None:
    """Upstream's mix takes one for the other."""
    take = Take(PROMPT, Sampling(), 1, 0, [[20, 30, 21, 31, 2], [22, 32, 23, 2]], [False, True])
    tokens = song_tokens(take, ["verse", "chorus"], VOCABULARY)
    assert tokens.vocals.tolist() == [0, 1, 2, 3]
    assert tokens.instrumental.tolist() == [10, 11, 12, 12]
    assert [(s.label, s.start, s.end, s.truncated) for s in tokens.spans] == [
        ("verse", 0, 2, False),
        ("chorus", 2, 4, True),
    ]
    assert section_ids(tokens, tokens.spans[0], VOCABULARY) == take.audio[0]
    assert section_ids(tokens, tokens.spans[1], VOCABULARY) == [22, 32, 23, 32, 2]
