"""What a song file carries, and forged files."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yue_core.audio.metadata import _framed
from yue_core.earlier import go_on, pack, read_song, unpack
from yue_core.errors import AudioFileError, LyricsError, RequestError
from yue_core.song import Reference, SectionSpan, Song, SongRequest, SongTokens
from yue_core.text.lyrics import parse_lyrics

LYRICS = "[verse]\nOne\n\n[chorus]\nTwo\n\n[outro]\nThree\n"
REQUEST = SongRequest("pop, 明るい", LYRICS, seed=2**40, num_segments=2)


def song(frames: int = 100) -> Song:
    codes = np.random.default_rng(0).integers(0, 1024, (2, frames)).astype(np.int16)
    spans = (SectionSpan("verse", 0, 40, False), SectionSpan("chorus", 40, frames, True))
    return Song(SongTokens(codes[0], codes[1], spans), {}, REQUEST.seed, 0, (), {}, 0.0)


def edited(change) -> bytes:
    """A payload with its header changed: what a forger could write."""
    text, _, codes = zlib.decompress(pack(song(), REQUEST, "tiny")).partition(b"\0")
    header = json.loads(text)
    change(header)
    return zlib.compress(json.dumps(header).encode() + b"\0" + codes)


def test_everything_comes_back():
    earlier = unpack(pack(song(), REQUEST, "tiny"))
    assert earlier.request == REQUEST
    assert earlier.tokens.spans == song().tokens.spans
    assert (earlier.tokens.vocals == song().tokens.vocals).all()
    assert (earlier.tokens.instrumental == song().tokens.instrumental).all()
    assert (earlier.profile, earlier.had_reference) == ("tiny", False)


def test_three_minutes_add_less_than_250_kilobytes():
    assert len(pack(song(180 * 50), REQUEST, "en")) < 60_000


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["spans"][1].update(end=99),
        lambda h: h["spans"][1].update(start=41),
        lambda h: h["spans"][0].update(end=0),
        lambda h: h.update(spans=[]),
        lambda h: h["request"].update(lyrics="[verse]\nOne"),
        lambda h: h["request"].pop("lyrics"),
        lambda h: h["request"].update(lyrics=""),
        lambda h: h["request"].update(sampling=None),
        lambda h: h["request"].update(seed="many"),
        lambda h: h.update(spans=[{"label": "a", "start": 0, "end": 2**70, "truncated": 0}]),
    ],
)
def test_a_forged_song_is_refused(tmp_path, change):
    file = tmp_path / "song.flac"
    file.write_bytes(_framed(edited(change)))
    with pytest.raises(AudioFileError, match="carries no song of ours"):
        read_song(file)


def test_codes_outside_the_codebook_are_refused():
    wild = song()
    wild.tokens.vocals[3] = 1024
    with pytest.raises(ValueError, match="codes"):
        unpack(pack(wild, REQUEST, "tiny"))


def test_a_bomb_is_refused():
    with pytest.raises(ValueError, match="too large"):
        unpack(zlib.compress(b" " * (50 << 20)))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_rubbish_is_one_sentence(tmp_path_factory, rubbish):
    file = tmp_path_factory.mktemp("rubbish") / "song.mp3"
    for content in (rubbish, b"ID3" + _framed(rubbish), _framed(zlib.compress(rubbish))):
        file.write_bytes(content)
        with pytest.raises(AudioFileError, match="carries no song of ours"):
            read_song(file)


def test_without_lyrics_the_request_is_the_old_one_in_a_new_form():
    asked = SongRequest("", " ", seed=1, output="stems", output_format="wav", limiter=False, variations=3)
    request, warnings = go_on(asked, unpack(pack(song(), REQUEST, "tiny")), None)
    assert request == replace(REQUEST, output="stems", output_format="wav", limiter=False)
    assert warnings == []


def test_new_lyrics_follow_what_was_sung_and_what_was_not_is_gone():
    asked = SongRequest("", "[bridge]\nFour\n[outro]\nFive", seed=1, num_segments=1)
    request, _ = go_on(asked, unpack(pack(song(), REQUEST, "tiny")), None)
    assert [(s.label, s.text) for s in parse_lyrics(request.lyrics).sections] == [
        ("verse", "One"),
        ("chorus", "Two"),
        ("bridge", "Four"),
        ("outro", "Five"),
    ]
    assert request.num_segments == 3
    assert request.genre_tags == REQUEST.genre_tags
    assert request.seed == 1


def test_a_section_gets_new_words_or_keeps_its_own():
    earlier = unpack(pack(song(), REQUEST, "tiny"))
    words, _ = go_on(SongRequest("jazz", "[hook]\nNew", seed=1), earlier, 1)
    assert [section.text for section in parse_lyrics(words.lyrics).sections] == ["New", "Two"]
    assert words.genre_tags == "jazz"
    same, _ = go_on(SongRequest("", "", seed=1), earlier, 2)
    assert [section.text for section in parse_lyrics(same.lyrics).sections] == ["One", "Two"]
    for wrong in (0, 3):
        with pytest.raises(RequestError, match="redo_section must be 1 to 2"):
            go_on(SongRequest("", "", seed=1), earlier, wrong)


def test_a_reference_that_is_not_given_again_is_warned_about(tmp_path):
    payload = pack(song(), replace(REQUEST, reference=Reference(mix=tmp_path)), "tiny")
    assert unpack(payload).request.reference is None
    _, (warning,) = go_on(SongRequest("", "[a]\nb", seed=1), unpack(payload), None)
    assert "reference clip" in warning
    assert str(tmp_path) not in str(zlib.decompress(payload))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="[]ab \nverse:【】x2-", max_size=80))
def test_lyrics_written_back_are_the_same_sections(text):
    try:
        sections = parse_lyrics(text).sections
    except LyricsError:
        return
    again = parse_lyrics("".join(section.prompt for section in sections)).sections
    assert again == sections
