"""Cancelling and shutting down at any stage."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.server.serving import LYRICS, NO_MODELS, QUICK, SHORT, clip, content, data_uri, decoded

STOP_SECONDS = 2.0  # half a second on a machine of one's own; RELIABILITY.md has the figures
LONG = {"lyrics": LYRICS, "seed": 1, "max_new_tokens": 6000}
PREFILL = {"lyrics": "[verse]\n" + 140 * "Paper boats are drifting on the rain\n", "seed": 1, "max_new_tokens": 3000}
STAGES = {  # words to wait for -> what to ask for
    "stage 1": LONG | {"lyrics": 20 * LYRICS, "genre_tags": "pop"},
    "stage 2": LONG | {"genre_tags": "no-stage1"},
    "audio": LONG | {"genre_tags": NO_MODELS},
    "Starting prediction": {**PREFILL, "genre_tags": "pop"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_cancelled_prediction_stops_and_the_next_one_works(faulty, webhooks, stage):
    name = "cancel-" + stage.replace(" ", "-")
    faulty.start(name, webhook=webhooks.url, **STAGES[stage])
    faulty.wait_for_log(name, stage)
    asked = time.perf_counter()
    faulty.cancel(name)
    faulty.wait_until("READY")
    seconds = time.perf_counter() - asked
    assert webhooks.finished(name)["status"] == "canceled"
    assert seconds < STOP_SECONDS
    print(f"cancelled in {stage} after {seconds:.2f} s")
    assert faulty.predict(**QUICK)["status"] == "succeeded"


def test_a_client_that_hangs_up_cancels_its_prediction(faulty):
    url = faulty.http.base_url.join("/predictions")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"input": STAGES["stage 1"]}, timeout=1)
    faulty.wait_until("READY", seconds=20)
    assert faulty.predict(**QUICK)["status"] == "succeeded"


def test_cancelling_what_is_over_changes_nothing(faulty):
    faulty.predict(**QUICK)
    assert faulty.http.post("/predictions/unknown/cancel").status_code == 404
    assert faulty.predict(**QUICK)["status"] == "succeeded"


@pytest.mark.parametrize("how", ["SIGTERM", "/shutdown"])
def test_a_stopped_server_finishes_the_running_song_and_leaves_nothing_behind(start_server, how):
    server = start_server()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.predict(**SHORT, output_format="wav")))
    thread.start()
    server.wait_until("BUSY")
    if how == "SIGTERM":
        server.process.terminate()
    else:
        assert server.http.post("/shutdown").status_code == 200
    assert server.process.wait() == 0
    thread.join()
    (answer,) = answers
    assert answer["status"] == "succeeded"
    assert len(decoded(content(answer["output"]))[0]) > 40_000
    assert list(server.temporary.glob("yue-*")) == []


def test_uploads_are_gone_after_a_prediction(faulty):
    faulty.predict(**QUICK, reference_audio=data_uri(clip()), reference_end=2.0)
    left = [path for path in faulty.temporary.rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == [".mp3"], "only the last prediction's song is there"
