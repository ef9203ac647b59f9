"""scripts/serve: the HTTP server that the container runs, on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREDICTOR = "predict.py:Predictor"


def server_environment(port: int) -> dict[str, str]:
    """Environment of the server process (facts: Cog, 1.1); its worker is started as the `python` of PATH."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    return {**os.environ, "COG_PREDICT_TYPE_STUB": PREDICTOR, "PORT": str(port), "PATH": path}


def server_command(host: str) -> list[str]:
    """Command line of the server process, to be run in ROOT."""
    return [sys.executable, "-m", "cog.server.http", "--host", host]


def main() -> None:
    """Write the input schema, then become the server."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description=__doc__)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on; 0.0.0.0 is the whole network")
    arguments = parser.parse_args()

    from yue_core.commands.schema import write_schema  # slow: imports the predictor

    write_schema(ROOT)
    os.environ.setdefault("LOG_FORMAT", "console")
    os.chdir(ROOT)
    os.execve(sys.executable, server_command(arguments.host), server_environment(arguments.port))


if __name__ == "__main__":
    main()
