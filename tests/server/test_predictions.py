"""Songs, refusals and answers of the real server on `tiny`."""

from __future__ import annotations

import json

import pytest

from tests.server.serving import LYRICS, SHORT, clip, content, data_uri, decoded
from yue_core.commands.schema import openapi_schema


def test_it_serves_the_schema_that_cog_would_bake_in(server):
    assert server.http.get("/openapi.json").json() == openapi_schema("predict", "Predictor")


def test_a_song_from_lyrics_and_tags(server):
    answer = server.predict(**SHORT | {"lyrics": LYRICS + "[chorus]\nLeave a light on\n", "seed": 42})
    assert answer["status"] == "succeeded", answer
    assert answer["output"].startswith("data:audio/mpeg;base64,")
    samples, rate = decoded(content(answer["output"]))
    metrics = answer["metrics"]
    assert rate == 44_100
    assert len(samples) / rate == pytest.approx(metrics["audio_output_duration_seconds"], abs=0.1)
    assert abs(samples).max() > 0.001
    assert metrics["seed"] == 42
    assert [section["label"] for section in metrics["sections"]] == ["verse", "chorus"]
    assert metrics["sections"][0]["start"] == 0
    assert metrics["sections"][0]["end"] == metrics["sections"][1]["start"]
    assert metrics["token_output_count"] == 100 * metrics["sections"][1]["end"]
    assert set(metrics["timing"]) == {"stage_1", "stage_2", "audio"}
    assert metrics["real_time_factor"] > 0
    assert metrics["output_file"].startswith("song-42-")


def test_a_song_with_a_reference_clip(server):
    plain = server.predict(**SHORT, output_format="wav")
    answer = server.predict(**SHORT, output_format="wav", reference_audio=data_uri(clip()), reference_end=2.0)
    assert answer["status"] == "succeeded", answer
    assert answer["output"].startswith("data:audio/wav;base64,")
    samples, rate = decoded(content(answer["output"]))
    assert len(samples) / rate == pytest.approx(answer["metrics"]["audio_output_duration_seconds"], abs=0.001)
    assert "reference" in answer["metrics"]["timing"]
    assert answer["output"] != plain["output"], "the clip makes a difference"


def test_the_same_seed_gives_the_same_file(server):
    first, second = (server.predict(**SHORT, output_format="flac")["output"] for _ in range(2))
    assert first == second
    assert server.predict(**SHORT | {"seed": 2}, output_format="flac")["output"] != first


def test_a_seed_left_out_is_drawn_and_told(server):
    inputs = {key: value for key, value in SHORT.items() if key != "seed"}
    seeds = {server.predict(**inputs)["metrics"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    "inputs",
    [{"seed": "1"}, {"top_p": 1.5}, {"max_new_tokens": 99}, {"output": "midi"}, {"lyrics": 3}, {"seed": None}],
)
def test_a_wrong_type_or_value_is_422_and_names_the_input(server, inputs):
    response = server.send("POST", "/predictions", json={"input": inputs})
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["detail"]] == [["body", "input", *inputs]]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"lyrics": " \n"}, "The lyrics are empty: put [verse] or [chorus] on a line of its own"),
        ({"lyrics": "no label"}, "The lyrics have no section label"),
        ({"seed": -1}, "The seed must be 0 to"),
        ({"num_segments": 0}, "The number of segments must be 1 or more"),
        ({"redo_section": 1}, "redo_section needs a song"),
        ({"reference_audio": "/etc/hostname"}, "reference_audio must be an uploaded file"),
        ({"song": "file:///etc/hostname"}, "song must be an uploaded file"),
        ({"song": data_uri(clip())}, "The song carries no song of ours"),
        ({"reference_vocals": data_uri(clip())}, "A dual-track reference needs both tracks"),
        ({"reference_audio": data_uri(b"<html>not audio</html>")}, "is no audio file"),
        ({"reference_audio": data_uri(clip()), "reference_start": 9.0}, "has 0.00 s in the window asked for"),
        ({"reference_audio": data_uri(clip(0.5))}, "1 s is the least"),
    ],
)
def test_a_users_mistake_is_one_sentence(server, inputs, sentence):
    answer = server.predict(**SHORT | inputs)
    assert answer["status"] == "failed"
    assert sentence in answer["error"]
    assert answer["error"].count("\n") == 0
    for leak in ("Traceback", "/tmp/", str(server.temporary), "/yue_core", "site-packages"):
        assert leak not in json.dumps(answer)


def test_a_blank_file_input_is_none(server):
    answer = server.predict(**SHORT | {"reference_audio": "", "song": "", "max_new_tokens": 100})
    assert answer["status"] == "succeeded", answer
    assert "reference" not in answer["metrics"]["timing"]
