"""Faults of Cog 0.23 that a predictor cannot mend. When one of these fails, Cog has: RELIABILITY.md needs an edit."""

from __future__ import annotations

import pytest

from tests.server.serving import QUICK


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_an_id_that_cannot_name_a_folder_takes_the_slot_for_good(start_server, name):
    server = start_server(predictor="tests/server/faulty.py:Faulty")
    answer = server.http.post("/predictions", json={"id": name, "input": QUICK}).json()
    assert answer["status"] == "failed"
    assert "Failed to create output dir" in answer["error"]
    assert server.health()["status"] == "BUSY"
    assert server.http.post("/predictions", json={"input": QUICK}).status_code == 409
    assert server.stop() == 0
