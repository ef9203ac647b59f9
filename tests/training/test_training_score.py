"""Songs made by rule: in key, on the grid, and as their tags say."""

from __future__ import annotations

import numpy as np
import pytest

from training.render import TUNING, chord_pitches, frequency, render
from training.score import INSTRUMENTAL_BARS, RANGES, draw_song, draw_style, draw_tags, play
from training.words import TAGS, syllables
from yue_core.song import Section

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_notes_and_chords_are_in_the_key(seed: int) -> None:
    song = draw_song(seed)
    for part in song.parts:
        assert {note.pitch % 12 for note in part.notes} <= song.style.scale
        assert {pitch % 12 for hit in part.hits for pitch in chord_pitches(hit.chord)} <= song.style.scale


@pytest.mark.parametrize("seed", SEEDS)
def test_every_onset_is_on_the_grid_and_inside_its_section(seed: int) -> None:
    song = draw_song(seed)
    for part in song.parts:
        for event in (*part.notes, *part.hits):
            assert event.start % song.style.sixteenth == 0
            assert 0 <= event.start < part.length
        for note, following in zip(part.notes, part.notes[1:], strict=False):
            assert note.start + note.length < following.start


def test_a_line_is_a_bar_and_a_section_without_text_is_not_sung() -> None:
    style = draw_style(np.random.default_rng(0))
    sung = play(Section("verse", "La la la\nRiver of light\n"), style, 1)
    quiet = play(Section("bridge", ""), style, 1)
    assert sung.length == 2 * style.bar
    assert len(sung.notes) == 3 + 4
    assert quiet.length == INSTRUMENTAL_BARS * style.bar
    assert not quiet.notes
    assert quiet.hits


def test_the_voice_is_silent_where_there_is_no_text_and_heard_where_there_is() -> None:
    song = draw_song(3, sections=[Section("intro", ""), Section("verse", "River of light")])
    voice, band = render(song, 16_000)
    border = song.parts[0].length * 320
    assert not voice[:border].any()
    assert np.abs(voice[border:]).max() > 0.05
    assert np.abs(band[:border]).max() > 0.05
    assert len(voice) == len(band) == sum(part.length for part in song.parts) * 320


def test_tags_say_what_is_heard() -> None:
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        style = draw_style(rng)
        tags = draw_tags(rng, style, keep=1.0).replace(",", "")
        for kind, values in TAGS.items():
            told = [value for value, words in values.items() if any(f" {word} " in f" {tags} " for word in words)]
            assert getattr(style, kind) in told
            assert told == [getattr(style, kind)] or kind == "mode"  # "bright" is a mood, and a voice's


def test_men_sing_below_women() -> None:
    assert RANGES["male"][1] < RANGES["female"][0]
    for seed in SEEDS:
        song = draw_song(seed)
        low, high = RANGES[song.style.voice]
        assert all(low <= note.pitch <= high for part in song.parts for note in part.notes)


def test_kinds_of_section_have_chords_of_their_own() -> None:
    style = draw_style(np.random.default_rng(1))
    text = "la la\nla la\nla la\nla la"
    chords = {
        kind: tuple(hit.chord for hit in play(Section(kind, text), style, 1).hits)
        for kind in ("verse", "chorus", "bridge")
    }
    assert len(set(chords.values())) == 3


def test_pitches_are_near_equal_temperament_and_repeat_after_sixteen_frames() -> None:
    for pitch in range(43, 74):
        assert frequency(pitch) % TUNING == 0
        assert abs(1200 * np.log2(frequency(pitch) / (440 * 2 ** ((pitch - 69) / 12)))) < 29


@pytest.mark.parametrize(
    ("text", "vowels"),
    [
        ("Streetlights hum", "ii" + "u"),
        ("home", "o"),
        ("かさね", "aae"),
        ("나무", "au"),
        ("L'amour toujours", "aoou"),
        ("...", ""),
    ],
)
def test_syllables_of_several_scripts(text: str, vowels: str) -> None:
    found = "".join(vowel for _, vowel in syllables(text))
    assert len(found) == len(vowels)
    if not text.isascii():
        assert found == vowels
