"""A song file alone is enough to go on: rendered anew, continued, one section sung again."""

from __future__ import annotations

import io
import zipfile

import pytest

from tests.server.serving import LYRICS, SHORT, content, data_uri, decoded
from yue_core.audio.metadata import read_payload
from yue_core.earlier import unpack

TAGS = {"genre_tags": "no-stage2"}  # the faulty predictor then skips stage 2, to be quick
TWO = SHORT | TAGS | {"lyrics": LYRICS + "[chorus]\nLeave a light on\n", "output_format": "flac"}
MIME = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac"}


@pytest.fixture(scope="module")
def song(faulty) -> bytes:
    """A song of two sections of one second."""
    return content(faulty.predict(**TWO)["output"])


def tokens(audio: bytes, tmp_path):
    file = tmp_path / "song"
    file.write_bytes(audio)
    return unpack(read_payload(file)).tokens


def same_sound(one: bytes, other: bytes) -> bool:
    return decoded(one)[0].tolist() == decoded(other)[0].tolist()


@pytest.mark.parametrize("output_format", MIME)
def test_rendered_anew_in_any_format_it_has_the_same_tokens_and_sound(faulty, song, tmp_path, output_format):
    answer = faulty.predict(song=data_uri(song, "audio/flac"), output_format=output_format)
    assert answer["status"] == "succeeded", answer
    again = content(answer["output"])
    ours, theirs = tokens(song, tmp_path), tokens(again, tmp_path)
    assert (ours.vocals == theirs.vocals).all()
    assert (ours.instrumental == theirs.instrumental).all()
    assert ours.spans == theirs.spans
    assert answer["metrics"]["seed"] == TWO["seed"]
    assert answer["metrics"]["timing"]["stage_1"] < 0.1, "stage 1 does not run again"
    assert len(decoded(again)[0]) == pytest.approx(len(decoded(song)[0]), abs=4410)
    if output_format == "flac":
        assert same_sound(again, song)
    # and each format carries its tokens on
    third = faulty.predict(song=data_uri(again, MIME[output_format]), output_format="flac")
    assert same_sound(content(third["output"]), song)


def test_stems_are_one_zip_with_mix_vocals_and_instrumental(faulty, song):
    answer = faulty.predict(song=data_uri(song), output="stems", output_format="wav")
    with zipfile.ZipFile(io.BytesIO(content(answer["output"]))) as archive:
        names = archive.namelist()
        tracks = {name.split("-")[0]: decoded(archive.read(name))[0] for name in names}
    assert all(name.endswith(".wav") and "-1-" in name for name in names)
    assert set(tracks) == {"song", "vocals", "instrumental"}
    assert len({len(track) for track in tracks.values()}) == 1
    assert abs(tracks["vocals"] - tracks["instrumental"]).max() > 0.001
    zipped = content(answer["output"])
    assert same_sound(content(faulty.predict(song=data_uri(zipped), output_format="flac")["output"]), song)


def test_with_lyrics_it_is_continued_and_the_beginning_stays(faulty, song, tmp_path):
    inputs = {"song": data_uri(song), "lyrics": "[outro]\nHome\n", "max_new_tokens": 100, "seed": 5}
    answer = faulty.predict(**inputs, output_format="flac")
    assert [section["label"] for section in answer["metrics"]["sections"]] == ["verse", "chorus", "outro"]
    before, after = tokens(song, tmp_path), tokens(content(answer["output"]), tmp_path)
    kept = before.spans[-1].end
    assert (after.vocals[:kept] == before.vocals).all()
    assert len(after.vocals) > kept
    assert answer["metrics"]["seed"] == 5


def test_one_section_is_sung_again_and_the_others_stay(faulty, song, tmp_path):
    inputs = {"song": data_uri(song), "redo_section": 1, "max_new_tokens": 100, "seed": 5}
    answer = faulty.predict(**inputs, output_format="flac")
    before, after = tokens(song, tmp_path), tokens(content(answer["output"]), tmp_path)
    (old, old_rest), (new, new_rest) = before.spans, after.spans
    assert (new.label, new_rest.label) == (old.label, old_rest.label)
    assert not (after.vocals[: new.end] == before.vocals[: old.end]).all()
    assert (after.vocals[new_rest.start :] == before.vocals[old_rest.start :]).all()


def test_variations_come_as_one_zip_and_differ(faulty):
    answer = faulty.predict(**SHORT | TAGS, variations=2, output_format="wav")
    with zipfile.ZipFile(io.BytesIO(content(answer["output"]))) as archive:
        first, second = (archive.read(name) for name in archive.namelist())
    assert first != second
    alone = faulty.predict(**SHORT | TAGS, output_format="wav")
    assert same_sound(content(alone["output"]), first)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"redo_section": 3}, "redo_section must be 1 to 2"),
        ({"redo_section": 0}, "redo_section must be 1 to 2"),
        ({"redo_section": 1, "lyrics": "[a]\nb\n[c]\nd"}, "redo_section replaces one section, and the lyrics have 2"),
        ({"lyrics": "no label"}, "The lyrics have no section label"),
    ],
)
def test_contradictions_are_one_sentence(faulty, song, inputs, sentence):
    answer = faulty.predict(song=data_uri(song), **inputs)
    assert answer["status"] == "failed"
    assert sentence in answer["error"]


def test_a_stripped_song_is_refused(faulty, song):
    samples, rate = decoded(song)
    import soundfile

    bare = io.BytesIO()
    soundfile.write(bare, samples, rate, format="FLAC")
    answer = faulty.predict(song=data_uri(bare.getvalue()))
    assert "The song carries no song of ours, or lost it on the way" in answer["error"]
