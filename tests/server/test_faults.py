"""Things that go wrong on our side: what the user sees, and that the next prediction works."""

from __future__ import annotations

import json

import pytest

from tests.server.serving import NO_MODELS, QUICK, SHORT, content, decoded
from yue_core.guard import OUR_FAULT


def resident(server) -> int:
    """Memory of the worker in bytes."""
    worker = server.processes()[-1]
    with open(f"/proc/{worker}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_bug_is_one_sentence_for_the_user_and_a_traceback_for_us(faulty):
    answer = faulty.predict(**SHORT | {"genre_tags": "bug"})
    assert answer["status"] == "failed"
    assert answer["error"].endswith(f"RuntimeError: {OUR_FAULT}")
    assert "secret" not in json.dumps(answer)
    for words in ("Traceback", "KeyError"):  # written by another process, so perhaps a moment later
        faulty.wait_for_log("", words)
    assert faulty.predict(**QUICK)["status"] == "succeeded"


def test_memory_that_ran_out_is_freed_and_the_sentence_says_what_fits(faulty):
    assert faulty.predict(**QUICK)["status"] == "succeeded"
    before = resident(faulty)
    for _ in range(3):
        answer = faulty.predict(**SHORT | {"genre_tags": "memory"})
        assert answer["status"] == "failed"
        assert "MachineError: The memory is full:" in answer["error"]
        assert "fit; ask for fewer variations" in answer["error"]
    assert resident(faulty) - before < 100 << 20, "each failed prediction held 256 MiB"
    assert faulty.predict(**QUICK)["status"] == "succeeded"


@pytest.mark.parametrize("output_format", ["mp3", "flac"])
def test_a_format_that_cannot_be_encoded_becomes_wav(faulty, output_format):
    tags = f"{NO_MODELS} no-{output_format}"
    answer = faulty.predict(**QUICK | {"genre_tags": tags}, output_format=output_format)
    assert answer["status"] == "succeeded"
    assert answer["output"].startswith("data:audio/wav;")
    samples, rate = decoded(content(answer["output"]))
    assert len(samples) / rate == pytest.approx(answer["metrics"]["audio_output_duration_seconds"], abs=0.001)
    sentence = f"Encoding as {output_format} failed; the song is a WAV file instead."
    assert sentence in answer["metrics"]["warnings"]
    assert sentence in answer["logs"]


def test_without_any_format_the_sentence_hides_the_folder(faulty):
    answer = faulty.predict(**QUICK | {"genre_tags": f"{NO_MODELS} no-wav no-mp3"})
    assert answer["status"] == "failed"
    assert "MachineError: The song could not be written" in answer["error"]
    assert str(faulty.temporary) not in answer["error"]


def test_json_logs_are_one_object_per_line(faulty):
    lines = faulty.predict(**QUICK)["logs"].splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert {event["event"] for event in events} == {"warning", "stage", "song"}
    (song,) = [event for event in events if event["event"] == "song"]
    assert song["seed"] == 1
    assert song["file"].startswith("song-1-")
    assert {event["name"] for event in events if event["event"] == "stage"} >= {"audio"}


def test_a_lost_device_turns_the_health_check(start_server):
    server = start_server(predictor="tests/server/faulty.py:Faulty")
    assert server.predict(**SHORT | {"genre_tags": "lost"})["status"] == "failed"
    assert "user_healthcheck_error" in server.wait_until("UNHEALTHY")
    assert server.stop() == 0


def test_a_dead_worker_fails_the_prediction_and_the_health_check(start_server):
    server = start_server(predictor="tests/server/faulty.py:Faulty")
    answer = server.predict(**SHORT | {"genre_tags": "death"})
    assert answer["status"] == "failed"
    assert server.wait_until("UNHEALTHY")
    leftovers = list(server.temporary.glob("yue-*"))
    assert len(leftovers) == 1
    assert server.stop() == 0
