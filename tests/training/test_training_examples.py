"""What stage 1 is shown."""

from __future__ import annotations

import numpy as np

from training.examples import (
    BATCH_IDS,
    BATCHES_PER_POOL,
    CLIPS,
    DECIDED,
    END,
    HELD,
    MOST_BARS,
    PLAN,
    TRAITS,
    TRAITS_FROM,
    UNASKED,
    audio_stretch,
    batch,
    clips,
    differing,
    example,
    misheard,
    reference_codes,
    traits_of,
)
from training.score import DEGREES, KEYS, KINDS, chord_on, draw_song, draw_style, kind_of
from training.states import BAND, band_codes, vocal_codes
from training.tokenizer import VOCABULARY as V
from training.words import TAGS, TEMPO
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


def test_references_and_first_bars_are_asked_about() -> None:
    """Along a reference, once enough of it was heard, and where a section's audio begins behind a prompt."""
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    heard = []
    for seed in range(60):
        one, style = example(seed, tokenizer), draw_song(seed).style
        song = np.flatnonzero(one.weights)[0]
        asked = np.flatnonzero((one.traits != UNASKED).any(1))
        along, bars = asked[asked < song], asked[asked >= song]
        if len(along):
            assert (one.traits[along] == one.traits[along[0]]).all()
            codes = np.flatnonzero(one.ids[:song] >= V.codebook_start)
            assert along.tolist() == (codes[TRAITS_FROM:-1] + 1).tolist()
            assert one.traits[along[0]][-1] == KEYS.index(style.tonic)
        begins = np.flatnonzero((one.plan != UNASKED).any(1))
        assert bars.tolist() == [begin + i for begin in begins for i in range(2 * style.bar)]
        assert (one.traits[bars] == traits_of(style)).all()
        heard.append(len(along) > 0)
    assert 0.2 < np.mean(heard) < 0.6


def test_listening_is_to_references_alone() -> None:
    for one in clips(3):
        assert not one.weights.any()
        assert one.ids[:2].tolist() == [V.start_of_audio, V.xcodec]
        assert one.ids[-1] == V.end_of_audio
        assert (one.ids[2:-1] >= V.codebook_start).all()
        answers = one.traits[(one.traits != UNASKED).any(1)]
        band = one.ids[2:-1][one.ids[2:-1] >= V.codebook_start + BAND] - V.codebook_start - BAND
        assert set(band // 8 % 3) == {answers[0][[name for name, _ in TRAITS].index("instrument")]}
    assert len(clips(3)) == CLIPS
    assert [one.ids.tolist() for one in clips(3)] == [one.ids.tolist() for one in clips(3)]


def test_a_reference_has_what_the_tags_leave_open() -> None:
    rng = np.random.default_rng(2)
    changed = set()
    for _ in range(60):
        style = draw_style(rng)
        told = [kind for kind in TAGS if rng.random() < 0.5]
        other = differing(rng, style, told)
        assert other.tonic == style.tonic
        differs = {kind for kind in TAGS if getattr(other, kind) != getattr(style, kind)}
        assert differs <= set(told)
        changed |= differs
        lengths = {len(track) for track in reference_codes(rng, other)}
        assert len(lengths) == 1
    assert changed == set(TAGS)


def test_questions_on_the_side_have_the_song_s_answers() -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        song = draw_song(seed)
        part, style = song.parts[0], song.style
        bars = part.length // style.bar
        one = audio_stretch(song, 0, rng, planned=True)
        names = [name for name, _ in PLAN]
        assert list(TEMPO.values())[one.plan[0][names.index("sixteenth")]] == style.sixteenth
        assert one.plan[0][names.index("bars")] == bars <= MOST_BARS
        assert (one.plan[1:] == UNASKED).all()
        kind, tonic = KINDS.index(kind_of(part.section.label)), KEYS.index(style.tonic)
        chords = [chord_on(style.tonic, degree) for degree in DEGREES[style.mode][KINDS[kind]]]
        assert one.plan[0][-3:].tolist() == [kind, bars, chords[0]]
        frames = one.place[::2]  # of the vocals' ids and end-of-audio
        assert (frames[:, 2:4] == [kind, tonic]).all()
        frames = frames[:, [0, 1, 4]]
        second = END if bars == 1 else chords[1]
        assert frames[0].tolist() == [0, bars, chords[0]]
        assert frames[-1].tolist() == [0, 0, END]
        assert frames[style.bar - 1].tolist() == [15, bars, second]
        assert frames[style.bar].tolist() == [0, bars - 1, second]
        assert frames[style.sixteenth].tolist() == [1, bars, second]


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
