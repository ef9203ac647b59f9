"""A server that cannot start says why."""

from __future__ import annotations

import pytest

from tests.server.serving import SHORT, Server


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [("en", "run scripts/weights fetch en"), ("huge", "There is no profile 'huge'")],
)
def test_missing_weights_are_told_by_the_health_check(tmp_path, profile, sentence):
    server = Server(tmp_path, YUE_PROFILE=profile, YUE_WEIGHTS=str(tmp_path / "weights"))
    try:
        health = server.wait_until("SETUP_FAILED")
        assert sentence in health["setup"]["logs"]
        assert server.http.post("/predictions", json={"input": SHORT}).status_code == 503
    finally:
        server.stop()
