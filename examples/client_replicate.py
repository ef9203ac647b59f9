"""A song from a model on Replicate, with its progress.

REPLICATE_API_TOKEN=... python examples/client_replicate.py you/yue
For a deployment of your own, replicate.deployments.predictions.create takes the same input.
"""

import json
import sys
import time
from pathlib import Path

import httpx
import replicate


def main() -> None:
    inputs = json.loads((Path(__file__).parent / "request.json").read_text())["input"]
    version = replicate.models.get(sys.argv[1]).latest_version
    prediction = replicate.predictions.create(version=version, input=inputs)
    while prediction.status not in ("succeeded", "failed", "canceled"):
        time.sleep(1)
        prediction.reload()
        if prediction.progress:
            print(f"{prediction.progress.percentage:.0%}", end="\r", file=sys.stderr)
    if prediction.status != "succeeded":
        sys.exit(prediction.error or prediction.status)
    Path("song.mp3").write_bytes(httpx.get(prediction.output).content)
    print(f"song.mp3: seed {prediction.metrics['seed']}")


if __name__ == "__main__":
    main()
