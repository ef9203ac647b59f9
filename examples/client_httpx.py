"""A song from a running server (scripts/serve, or the container): python examples/client_httpx.py song.mp3"""

import base64
import json
import os
import sys
import time
from pathlib import Path

import httpx

SERVER = os.environ.get("YUE_SERVER", "http://127.0.0.1:5000")


def predict(inputs: dict) -> dict:
    """Send a prediction and wait for it; a server that is busy (409) is asked again."""
    while True:
        response = httpx.post(f"{SERVER}/predictions", json={"input": inputs}, timeout=None)
        if response.status_code != 409:
            response.raise_for_status()
            return response.json()
        time.sleep(1)


def main() -> None:
    inputs = json.loads((Path(__file__).parent / "request.json").read_text())["input"]
    answer = predict(inputs)
    if answer["status"] != "succeeded":
        sys.exit(answer["error"])
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "song.mp3")
    target.write_bytes(base64.b64decode(answer["output"].split(",", 1)[1]))
    print(f"{target}: seed {answer['metrics']['seed']}, {answer['metrics']['audio_output_duration_seconds']} s")


if __name__ == "__main__":
    main()
