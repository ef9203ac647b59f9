"""Upstream's faults, kept out of the whole way from a request to a file; and what else a whole song must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from yue_core import stage2
from yue_core.audio.mastering import Track, fade_out, limit, master
from yue_core.delivery import deliver
from yue_core.errors import ReferenceAudioError, RequestError
from yue_core.lm.generation import GenerationDefaults
from yue_core.pipeline import Pipeline
from yue_core.progress import Progress
from yue_core.song import SAMPLE_RATE, Reference, Sampling, Song, SongRequest
from yue_core.stage2 import refine

LYRICS = "[verse]\nla la la\n\n[chorus]\nhey hey\n"
SHORT = Sampling(max_new_tokens=100)  # one second per section
REQUEST = SongRequest("calm folk female", LYRICS, seed=5, sampling=SHORT)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def song(pipeline: Pipeline) -> Song:
    return pipeline.generate(REQUEST)[0]


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes clips of noise, stereo."""

    def write(name: str, seconds: float, rate: int = 22_050) -> Path:
        noise = 0.1 * np.random.default_rng(len(name)).standard_normal((round(seconds * rate), 2))
        soundfile.write(tmp_path / name, noise, rate)
        return tmp_path / name

    return write


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 2 without a model, where a test is about what comes before or after it."""

    def repeat(lm: Any, vocabulary: Any, tracks: Any, progress: Any, **more: Any) -> list[Any]:
        return [np.repeat(track[None].astype(np.int64), vocabulary.num_codebooks, axis=0) for track in tracks]

    monkeypatch.setattr("yue_core.pipeline.refine", repeat)


@pytest.mark.parametrize(("segments", "count"), [(None, 2), (1, 1), (2, 2), (9, 2)])
def test_fault_01_as_many_sections_as_asked_for(pipeline: Pipeline, segments: int | None, count: int) -> None:
    """Upstream leaves out the last one."""
    assert pipeline.plan(replace(REQUEST, num_segments=segments)).count == count


@pytest.mark.usefixtures("instant")
def test_fault_01_one_section_is_a_song(pipeline: Pipeline, song: Song) -> None:
    """Upstream fails."""
    assert [span.label for span in song.tokens.spans] == ["verse", "chorus"]
    (only,) = pipeline.generate(replace(REQUEST, lyrics="[verse]\nla la la"))
    assert [span.label for span in only.tokens.spans] == ["verse"]


def test_fault_02_no_lyrics_are_lost(pipeline: Pipeline) -> None:
    plan = pipeline.plan(replace(REQUEST, lyrics="hello\n[Verse 1]\none\n[Pre-Chorus]\ntwo [x2] three\n"))
    assert [section.text for section in plan.sections] == ["hello", "one", "two [x2] three"]


def test_fault_03_fault_17_the_heads_hold_the_right_codebooks_and_nothing_else(pipeline: Pipeline) -> None:
    vocabulary = pipeline.vocabulary
    for ensemble in pipeline.stage1.values():
        assert ensemble.lm.drawable.tolist() == [vocabulary.end_of_audio, *vocabulary.codebook(0)]
        assert ensemble.lm.rest is not None  # the penalty needs the whole vocabulary's normaliser
    assert pipeline.stage2.drawable.tolist() == [i for k in range(1, 8) for i in vocabulary.codebook(k)]


def test_fault_13_a_song_below_six_seconds(song: Song) -> None:
    """Upstream fails below one window of stage 2."""
    frames = len(song.tokens.vocals)
    assert 0 < frames < stage2.WINDOW
    assert {name: len(audio) for name, audio in song.audio.items()} == dict.fromkeys(song.audio, 882 * frames)
    assert all(np.abs(audio).max() > 0 for audio in song.audio.values())


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("frames", [1, 300, 301, 601])
def test_fault_14_any_count_of_frames_becomes_audio(pipeline: Pipeline, frames: int) -> None:
    """Where one frame is above whole windows, an early copy of upstream fails."""
    takes, plan = pipeline.takes(replace(REQUEST, num_segments=1), Progress(None))
    start = pipeline.vocabulary.codebook_start
    takes[0].audio[0] = [start + i % 1024 for i in range(2 * frames)] + [pipeline.vocabulary.end_of_audio]
    (made,) = pipeline.render(plan, takes, Progress(None))
    assert len(made.audio["song"]) == 882 * frames
    assert np.isfinite(made.audio["song"]).all()


def test_fault_20_fault_21_tracks_keep_their_names_and_nothing_is_lossy_on_the_way(
    pipeline: Pipeline, song: Song
) -> None:
    """The song and its stems from the song's tokens, step by step in memory, are the delivered ones bit by bit."""
    tracks = [song.tokens.vocals, song.tokens.instrumental]
    codes = refine(pipeline.stage2, pipeline.vocabulary, tracks, Progress(None))
    vocals, instrumental = (
        Track(pipeline.codec.decode(c), pipeline.vocoders[name](pipeline.codec.embed(c)))
        for name, c in zip(("vocals", "instrumental"), codes, strict=True)
    )
    cut_off = song.tokens.spans[-1].truncated
    for name, waveform in master(vocals, instrumental).items():
        expected = limit(fade_out(waveform) if cut_off else waveform).numpy()
        assert np.array_equal(song.audio[name], expected)
    assert not np.array_equal(song.audio["vocals"], song.audio["instrumental"])


@pytest.mark.parametrize("tags", ["pop/rock ../../etc", "soul " * 400, "дж👩‍🎤", "a\nb: *?<>|"])
def test_fault_25_no_tag_reaches_a_file_name(song: Song, tmp_path: Path, tags: str) -> None:
    """Upstream names files by the tags, and loses the song where no file can be named so."""
    file, warnings = deliver([song], replace(REQUEST, genre_tags=tags, output_format="wav"), "tiny", tmp_path)
    assert file.parent == tmp_path
    assert file.name.startswith("song-5-")
    assert len(file.name) < 40
    assert file.name.isascii()
    assert warnings == []


@pytest.mark.usefixtures("instant")
def test_fault_27_the_working_directory_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, song: Song
) -> None:
    monkeypatch.chdir(tmp_path)
    (made,) = Pipeline.load("tiny", device="cpu").generate(REQUEST)
    assert np.array_equal(made.tokens.vocals, song.tokens.vocals)
    assert list(tmp_path.iterdir()) == []


def test_fault_28_an_earlier_song_rendered_again_is_a_song(pipeline: Pipeline, song: Song) -> None:
    """Upstream's second run finds the files of the first and yields no audio."""
    (again,) = pipeline.generate(REQUEST, earlier=song.tokens)
    assert again.tokens.spans == song.tokens.spans
    for name, audio in song.audio.items():
        assert np.array_equal(again.audio[name], audio)


def test_fault_29_one_track_of_two_is_refused(pipeline: Pipeline, clip: Callable[..., Path]) -> None:
    for reference in (Reference(vocals=clip("v.wav", 2)), Reference(instrumental=clip("i.wav", 2))):
        with pytest.raises(ReferenceAudioError, match="needs both tracks"):
            pipeline.generate(replace(REQUEST, reference=reference))


@pytest.mark.usefixtures("instant")
def test_fault_29_tracks_of_unequal_length_are_cut_to_the_shorter(
    pipeline: Pipeline, clip: Callable[..., Path]
) -> None:
    reference = Reference(vocals=clip("v.wav", 2.5), instrumental=clip("i.wav", 1.5))
    request = replace(REQUEST, num_segments=1, reference=reference)
    takes, plan = pipeline.takes(request, Progress(None))
    audio = [i for i in takes[0].prompt.head if i in pipeline.vocabulary.codebook(0)]
    assert len(audio) == 2 * 75  # 1.5 s, vocal and instrumental in turn
    assert any("differ in length" in warning for warning in plan.warnings)


def test_fault_30_only_the_window_is_encoded(
    pipeline: Pipeline, clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream encodes the whole clip, then cuts; here a longer clip costs nothing."""
    samples: list[int] = []
    encode = pipeline.codec.encode
    monkeypatch.setattr(pipeline.codec, "encode", lambda wave: (samples.append(len(wave)), encode(wave))[1])
    for seconds in (5, 60):
        request = replace(REQUEST, reference=Reference(mix=clip(f"{seconds}.wav", seconds), start=2.0, end=3.5))
        takes, _ = pipeline.takes(request, Progress(None))
        assert len([i for i in takes[0].prompt.head if i in pipeline.vocabulary.codebook(0)]) == 75
    assert samples == [24_000, 24_000]


# Reference audio


def test_a_reference_chooses_the_checkpoint_made_for_it(pipeline: Pipeline) -> None:
    assert pipeline.plan(REQUEST).stage1 == ("en", "cot")
    assert pipeline.plan(replace(REQUEST, reference=Reference(mix=Path("a.wav")))).stage1 == ("en", "icl")


@pytest.mark.parametrize(("lyrics", "profile"), [(LYRICS, "en"), ("[verse]\n月亮代表我的心", "zh")])
def test_a_reference_without_its_checkpoint_names_the_profile_to_load(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, lyrics: str, profile: str
) -> None:
    only_cot = {key: value for key, value in pipeline.stage1.items() if key[1] == "cot"}
    monkeypatch.setattr(pipeline, "stage1", only_cot)
    with pytest.raises(RequestError, match=rf"no checkpoint for reference audio; load the profile {profile} "):
        pipeline.plan(replace(REQUEST, lyrics=lyrics, reference=Reference(mix=Path("a.wav"))))


# Whole songs


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("ended", [True, False])
def test_a_song_fades_only_where_its_last_section_was_cut_off(pipeline: Pipeline, ended: bool) -> None:
    takes, plan = pipeline.takes(REQUEST, Progress(None))
    start = pipeline.vocabulary.codebook_start
    audio = [start + i * 7 % 1024 for i in range(300)] + [pipeline.vocabulary.end_of_audio]
    takes[0].audio, takes[0].truncated = [audio, audio], [True, not ended]
    (made,) = pipeline.render(plan, takes, Progress(None))
    tail = np.abs(made.audio["song"][-400:]).max()
    before = np.abs(made.audio["song"][: -2 * SAMPLE_RATE]).max()
    assert bool(tail > 0.05 * before) is ended
    assert [span.truncated for span in made.tokens.spans] == [True, not ended]


@pytest.mark.usefixtures("instant")
def test_a_section_that_cannot_fit_is_refused_before_any_model_runs(pipeline: Pipeline) -> None:
    from yue_core.errors import LyricsError

    with pytest.raises(LyricsError, match="too long"):
        pipeline.takes(replace(REQUEST, lyrics="[verse]\n" + "la la la la\n" * 5000), Progress(None))


# Languages


@pytest.mark.parametrize(
    ("language", "lyrics", "checkpoint", "tags"),
    [
        ("auto", LYRICS, "en", "calm folk female"),
        ("auto", "[verse]\n月亮代表我的心", "zh", "calm folk female Mandarin"),
        ("yue", "[verse]\n月亮代表我的心", "zh", "calm folk female Cantonese"),
        ("zh", "[verse]\n月亮代表我的心", "zh", "calm folk female Mandarin"),
        ("auto", "[verse]\nさくら咲く", "jp-kr", "calm folk female"),
        ("auto", "[verse]\n사랑해요 그대", "jp-kr", "calm folk female"),
        ("ja", LYRICS, "jp-kr", "calm folk female"),
        ("ko", LYRICS, "jp-kr", "calm folk female"),
    ],
)
def test_the_language_chooses_checkpoint_and_tag(
    pipeline: Pipeline, language: str, lyrics: str, checkpoint: str, tags: str
) -> None:
    plan = pipeline.plan(replace(REQUEST, language=language, lyrics=lyrics))
    assert plan.stage1 == (checkpoint, "cot")
    assert plan.genre_tags == tags


def test_a_language_tag_of_the_users_own_stays_alone(pipeline: Pipeline) -> None:
    request = replace(REQUEST, genre_tags="Cantonese pop", lyrics="[verse]\n月亮代表我的心")
    assert pipeline.plan(request).genre_tags == "Cantonese pop"


# Instrumental


@pytest.mark.usefixtures("instant")
def test_sections_without_text_are_instrumental_passages(pipeline: Pipeline) -> None:
    (made,) = pipeline.generate(replace(REQUEST, lyrics="[intro]\n\n[verse]\nla la la\n\n[outro]\n"))
    assert [span.label for span in made.tokens.spans] == ["intro", "verse", "outro"]
    assert all(span.end > span.start for span in made.tokens.spans)


@pytest.mark.parametrize("output", ["song", "vocals", "instrumental"])
def test_the_output_is_the_track_asked_for(song: Song, tmp_path: Path, output: str) -> None:
    file, _ = deliver([song], replace(REQUEST, output=output, output_format="wav"), "tiny", tmp_path)
    audio, rate = soundfile.read(file, dtype="float32")
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(audio, song.audio[output], rtol=0, atol=1.1 / 32768)
    assert file.name.startswith(f"{output}-")


# A checkpoint's own generation_config.json


def test_the_checkpoints_top_k_counts_unless_the_request_names_one(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.drawing, ("en", "cot"), GenerationDefaults())
    assert pipeline.plan(REQUEST).request.sampling.top_k == 50
    monkeypatch.setitem(pipeline.drawing, ("en", "cot"), GenerationDefaults(top_k=7))
    plan = pipeline.plan(REQUEST)
    assert plan.request.sampling == replace(SHORT, top_k=7)
    assert any("generation_config.json sets top-k 7" in warning for warning in plan.warnings)
    named = replace(REQUEST, sampling=replace(SHORT, top_k=20))
    assert pipeline.plan(named).request.sampling.top_k == 20
    assert not any("top-k" in warning for warning in pipeline.plan(named).warnings)


def test_a_checkpoint_can_make_stage_2_sample(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeatably, and every track and take by numbers of its own."""
    settings = GenerationDefaults(do_sample=True, temperature=0.8)
    monkeypatch.setattr(pipeline, "stage2_drawing", settings)
    seen: list[Any] = []

    def spy(lm: Any, vocabulary: Any, tracks: Any, progress: Any, drawing: Any, **_: Any) -> list[Any]:
        seen.append(drawing)
        return [np.repeat(track[None].astype(np.int64), vocabulary.num_codebooks, axis=0) for track in tracks]

    monkeypatch.setattr("yue_core.pipeline.refine", spy)
    (made, _) = pipeline.generate(replace(REQUEST, variations=2, num_segments=1))
    assert seen[0].settings == settings
    assert [tuple(key) for key in seen[0].songs] == [(5, 0, 1), (5, 0, 2), (5, 1, 1), (5, 1, 2)]
    assert any("sampling at temperature 0.8" in warning for warning in made.warnings)


# Invariant 1


@pytest.mark.usefixtures("instant")
def test_the_same_request_is_the_same_song_and_every_take_is_another(pipeline: Pipeline, song: Song) -> None:
    takes = pipeline.generate(replace(REQUEST, variations=2))
    assert np.array_equal(takes[0].tokens.vocals, song.tokens.vocals)
    assert not np.array_equal(takes[0].tokens.vocals, takes[1].tokens.vocals[: len(takes[0].tokens.vocals)])
    (other,) = pipeline.generate(replace(REQUEST, seed=6))
    assert not np.array_equal(other.tokens.vocals, song.tokens.vocals)


@pytest.mark.usefixtures("instant")
def test_torchs_own_random_numbers_are_neither_used_nor_moved(pipeline: Pipeline, song: Song) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    (made,) = pipeline.generate(REQUEST)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(made.tokens.vocals, song.tokens.vocals)
