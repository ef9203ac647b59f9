"""The states that codebook 0 stands for."""

from __future__ import annotations

import numpy as np

from training.score import draw_song
from training.states import ATTACK, BAND, SILENCE, STATES, band_codes, describe, state_vectors, vocal_codes


def test_states_of_a_song_say_what_is_played() -> None:
    song = draw_song(5)
    for part in song.parts:
        voice, band = vocal_codes(part, song.style), band_codes(part, song.style)
        assert len(voice) == len(band) == part.length
        assert voice.max(initial=0) < BAND <= band.min()
        assert band.max() < STATES
        for note in part.notes:
            first, held = describe(int(voice[note.start])), describe(int(voice[note.start + 1]))
            assert ATTACK <= voice[note.start] < BAND
            assert first["pitch"] == held["pitch"] == note.pitch - 46
            assert "aeiou"[held["vowel"]] == note.vowel
            assert voice[note.start + note.length] == SILENCE or note.start + note.length == part.length
        for hit in part.hits:
            found = describe(int(band[hit.start]))
            assert (found["chord"], bool(found["strike"])) == (hit.chord, hit.strike)


def test_each_state_is_nearest_to_its_own_vector() -> None:
    vectors = state_vectors(64)
    distances = (vectors**2).sum(1)[None] - 2 * vectors @ vectors.T
    assert (distances.argmin(1) == np.arange(STATES)).all()
    others = distances + (vectors**2).sum(1)[:, None] + 1e6 * np.eye(STATES)
    assert others.min() > 0.3
