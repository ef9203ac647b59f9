"""What a client sees while a song is made."""

from __future__ import annotations

from replicate.prediction import Prediction

from tests.server.serving import LYRICS


def test_replicates_client_reads_the_progress(server, webhooks):
    server.start("watched", webhook=webhooks.url, lyrics=LYRICS, genre_tags="pop", seed=1, max_new_tokens=300)
    last = webhooks.finished("watched")
    assert last["status"] == "succeeded"
    states = [Prediction.Progress.parse(body["logs"]) for body in webhooks.bodies if body["id"] == "watched"]
    states = [state for state in states if state]
    assert states, "no body had a bar"
    assert states[-1].percentage == 1.0
    assert all(0 <= state.percentage <= 1 and state.current <= state.total for state in states)
    assert "\r" not in last["logs"], "each state is a line of its own"
    assert last["logs"].endswith("\n"), "an open line would leak into the next prediction's log"


def test_the_log_tells_section_rate_and_time_left_and_ends_with_the_stages(server, webhooks):
    server.start("told", webhook=webhooks.url, lyrics=LYRICS, genre_tags="pop", seed=1, max_new_tokens=400)
    logs = webhooks.finished("told")["logs"].splitlines()
    bars = [line for line in logs if "stage 1, section 1/1" in line]
    assert bars
    assert all("token/s" in bar and "<" in bar for bar in bars)
    assert [line.split(",")[0] for line in logs if line.startswith("stage: ")] == [
        "stage: name stage 1",
        "stage: name stage 2",
        "stage: name audio",
    ]
    assert logs[-1].startswith("song: file song-1-")
