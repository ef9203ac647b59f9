"""Two predictions at once, where COG_MAX_CONCURRENCY asks for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.serving import LYRICS, SHORT, content


@pytest.fixture(scope="module")
def pair(start_server):
    return start_server(COG_MAX_CONCURRENCY="2")


def flac(answer) -> bytes:
    assert answer["status"] == "succeeded", answer
    return content(answer["output"])


def test_together_they_are_what_they_are_alone(pair, server):
    orders = [SHORT | {"seed": seed, "output_format": "flac"} for seed in (1, 2)]
    orders[1]["lyrics"] += "[chorus]\nLeave a light on\n"
    with ThreadPoolExecutor(2) as callers:
        together = list(callers.map(lambda order: pair.predict(**order), orders))
    alone = [server.predict(**order) for order in orders]
    assert [flac(answer) for answer in together] == [flac(answer) for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one["metrics"]["sections"] == other["metrics"]["sections"]
        assert f"song-{one['metrics']['seed']}" in one["logs"], "each has its own log"


def test_a_third_one_is_told_to_come_back(pair, webhooks):
    for name in ("first", "second"):
        pair.start(name, webhook=webhooks.url, lyrics=20 * LYRICS, genre_tags="pop", seed=1, max_new_tokens=6000)
    assert pair.health()["status"] == "BUSY"
    assert pair.http.post("/predictions", json={"input": SHORT}).status_code == 409
    pair.cancel("first")
    assert webhooks.finished("first")["status"] == "canceled"
    assert flac(pair.predict(**SHORT, output_format="flac")), "beside the second one"
    pair.cancel("second")
    assert webhooks.finished("second")["status"] == "canceled"
    pair.wait_until("READY")


def test_users_mistakes_read_the_same(pair):
    answer = pair.predict(lyrics="no label")
    assert answer["status"] == "failed"
    assert "LyricsError: The lyrics have no section label" in answer["error"]
