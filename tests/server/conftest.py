"""The real Cog server as a fixture: started on a free port, stopped at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.serving import Server, Webhooks


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers; whatever still runs at the end of the file is stopped: each takes a gigabyte."""
    servers: list[Server] = []

    def start(**arguments: Any) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), **arguments))
        servers[-1].wait_until("READY")
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    """The predictor as it is delivered, on `tiny`; shared by a file's tests."""
    return start_server()


@pytest.fixture(scope="module")
def faulty(start_server: Callable[..., Server]) -> Server:
    """The predictor that fails to order; shared."""
    return start_server(predictor="tests/server/faulty.py:Faulty", LOG_FORMAT="json")


@pytest.fixture(scope="module")
def quick(start_server: Callable[..., Server]) -> Server:
    """A server whose songs are a second of noise per section: all but the language models is exercised; shared."""
    return start_server(predictor="tests/server/faulty.py:Faulty", FAULTS="no-stage1 no-stage2 brief")


@pytest.fixture
def webhooks() -> Iterator[Webhooks]:
    """A receiver for the server's webhooks."""
    receiver = Webhooks()
    yield receiver
    receiver.http.shutdown()
