"""What stage 1 is shown."""

from __future__ import annotations

import numpy as np

from training.examples import (
    BATCH_IDS,
    BATCHES_PER_POOL,
    DECIDED,
    HELD,
    MOST_BARS,
    PLAN,
    UNASKED,
    audio_stretch,
    batch,
    example,
    misheard,
)
from training.score import draw_song
from training.states import BAND, band_codes, vocal_codes
from training.tokenizer import VOCABULARY as V
from training.words import TEMPO
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY


def test_examples_are_prompts_and_the_audio_behind_them() -> None:
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    kinds = set()
    for seed in range(40):
        one = example(seed, tokenizer)
        assert len({len(values) for values in vars(one).values()}) == 1
        chosen = one.ids[one.weights > 0]
        assert ((chosen >= V.codebook_start) | (chosen == V.end_of_audio)).all()
        assert one.ids[-1] == V.end_of_audio
        assert one.weights[-1] == np.float32(DECIDED)
        assert (np.diff(one.positions) >= 1).all()
        assert (one.heard == one.ids)[one.weights == 0].all()
        kinds.add(one.ids[0] == V.xcodec)
        if one.ids[0] != V.xcodec:
            first = int(np.flatnonzero(one.weights)[0])
            assert one.weights[first : first + 4].tolist() == np.float32([DECIDED, DECIDED, HELD, HELD]).tolist()
            assert one.ids[first - 2 : first].tolist() == [V.start_of_audio, V.xcodec]
            assert (one.plan[first] != UNASKED).all()
    assert kinds == {True, False}


def test_questions_on_the_side_have_the_song_s_answers() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        song = draw_song(seed)
        part, style = song.parts[0], song.style
        bars = part.length // style.bar
        one = audio_stretch(song, 0, rng, planned=True)
        names = [name for name, _ in PLAN]
        assert list(TEMPO.values())[one.plan[0][names.index("tempo")]] == style.sixteenth
        assert one.plan[0][names.index("bars")] == bars <= MOST_BARS
        assert (one.plan[1:] == UNASKED).all()
        frames = one.place[::2]  # of the vocals' ids and end-of-audio
        assert frames[0].tolist() == [0, bars]
        assert frames[-1].tolist() == [0, 0]
        assert frames[style.bar - 1].tolist() == [15, bars]
        assert frames[style.sixteenth].tolist() == [1, bars]


def test_errors_leave_most_frames_and_no_track_hears_the_other() -> None:
    rng = np.random.default_rng(1)
    changed = []
    for seed in range(30):
        song = draw_song(seed)
        codes = np.stack([vocal_codes(song.parts[0], song.style), band_codes(song.parts[0], song.style)], axis=1)
        heard = misheard(codes, song.style, rng)
        assert (heard[:, 0] < BAND).all()
        assert (heard[:, 1] >= BAND).all()
        changed.append(float((heard != codes).mean()))
    assert 0.01 < np.mean(changed) < 0.5


def test_batches_repeat_and_are_filled() -> None:
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    batches = [batch(number, tokenizer) for number in range(BATCHES_PER_POOL)]
    again = batch(1, tokenizer)
    assert [one.ids.tolist() for one in again] == [one.ids.tolist() for one in batches[1]]
    assert len({examples[0].ids.tobytes() for examples in batches}) == len(batches)
    for examples in batches:
        assert len(examples) == 1 or len(examples) * max(len(one.ids) for one in examples) <= BATCH_IDS
