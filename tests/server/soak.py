"""scripts/soak: many mixed predictions against the real server on `tiny`, and what they leave behind."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.server.serving import LYRICS, SHORT, Server, clip, content, data_uri, decoded
from yue_core.delivery import COG_FOLDER_SECONDS, COG_FOLDERS

MAX_GROWTH = 0.05  # of resident memory, after the warm-up
WARM_UP = 0.2  # of all predictions
KINDS = {  # kind -> share
    "song": 30,
    "reference": 10,
    "stems": 10,
    "render": 10,
    "bad lyrics": 10,
    "bad type": 5,
    "bad audio": 10,
    "cancelled": 10,
    "concurrent": 5,
}


@dataclass
class Soak:
    """The state of one run."""

    server: Server
    rng: random.Random
    earlier: str = ""  # data URI of a song
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of predictions that made a song

    def order(self) -> dict[str, Any]:
        """Inputs of a short song."""
        choice = self.rng.choice
        sections = choice(["", "[chorus]\nLeave a light on\n"])
        form = {"output_format": choice(["mp3", "wav", "flac"]), "output": choice(["song", "vocals", "instrumental"])}
        return SHORT | form | {"lyrics": LYRICS + sections, "seed": self.rng.randrange(1000)}

    def expect(self, kind: str, status: str, answer: dict[str, Any], words: str = "") -> None:
        """Note a fault when an answer is not the expected one."""
        self.outcomes[f"{kind}: {answer['status']}"] += 1
        if answer["status"] != status or words not in answer.get("error", ""):
            self.faults.append(f"{kind}: {answer}"[:500])

    def sing(self, kind: str, **more: Any) -> None:
        """A prediction that makes a song."""
        started = time.perf_counter()
        answer = self.server.predict(**self.order() | more)
        self.seconds.append(time.perf_counter() - started)
        self.expect(kind, "succeeded", answer)
        if answer["status"] == "succeeded" and "zip" not in answer["output"][:30]:
            self.earlier = answer["output"]
            samples, rate = decoded(content(answer["output"]))
            if abs(len(samples) / rate - answer["metrics"]["audio_output_duration_seconds"]) > 0.1:
                self.faults.append(f"{kind}: {len(samples) / rate} s of {answer['metrics']}")

    def run(self, kind: str, number: int) -> None:
        """One prediction of that kind."""
        server = self.server
        if kind == "song":
            self.sing(kind)
        elif kind == "reference":
            self.sing(kind, reference_audio=data_uri(clip(self.rng.choice([1.5, 3.0]))), reference_end=3.0)
        elif kind == "stems":
            self.sing(kind, output="stems")
        elif kind == "render":
            self.sing(kind, **({"song": self.earlier, "lyrics": "", "output": "song"} if self.earlier else {}))
        elif kind == "bad lyrics":
            self.expect(kind, "failed", server.predict(lyrics="nothing to sing"), "LyricsError")
        elif kind == "bad audio":
            rubbish = data_uri(self.rng.choice([b"", b"<html>", self.rng.randbytes(1000), clip()[:3000]]))
            self.expect(kind, "failed", server.predict(**SHORT, reference_audio=rubbish), "ReferenceAudioError")
        elif kind == "bad type":
            code = server.send("POST", "/predictions", json={"input": {"top_k": "many"}}).status_code
            self.expect(kind, "422", {"status": str(code)})
        elif kind == "cancelled":
            name = f"soak-{number}"
            server.start(name, **SHORT | {"max_new_tokens": 3000})
            time.sleep(self.rng.uniform(0, 1))
            server.cancel(name)
            server.wait_until("READY")
            self.outcomes["cancelled: canceled"] += 1
        elif kind == "concurrent":
            with ThreadPoolExecutor(3) as callers:
                for call in [callers.submit(self.sing, kind) for _ in range(3)]:
                    call.result()


def resident(server: Server) -> int:
    """Memory of the server and its worker in bytes."""
    pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in server.processes()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: Server) -> int:
    """File descriptors of the server and its worker."""
    return sum(len(os.listdir(f"/proc/{process}/fd")) for process in server.processes())


def disk(server: Server) -> int:
    """Entries in the server's temporary folder and, older than a minute, in Cog's own."""
    stale = 0
    for folder in COG_FOLDERS.glob("*"):
        with suppress(FileNotFoundError):  # the server was quicker
            stale += time.time() - folder.stat().st_mtime > COG_FOLDER_SECONDS + 30
    return stale + sum(1 for _ in server.temporary.rglob("*"))


def main() -> int:
    """Run and report; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--predictions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    server = Server(Path(tempfile.mkdtemp(prefix="soak-")))
    server.wait_until("READY")
    soak = Soak(server, random.Random(arguments.seed))
    measures: dict[str, Callable[[Server], int]] = {"memory": resident, "open files": open_files, "disk": disk}
    history: dict[str, list[int]] = {name: [] for name in measures}
    started = time.perf_counter()
    kinds = soak.rng.choices(list(KINDS), list(KINDS.values()), k=arguments.predictions)
    try:
        for number, kind in enumerate(kinds):
            soak.run(kind, number)
            for name, measure in measures.items():
                history[name].append(measure(server))
            if sys.stderr.isatty():
                print(f"\r{number + 1}/{len(kinds)} ", end="", file=sys.stderr)
    finally:
        code = server.stop()
    minutes = (time.perf_counter() - started) / 60
    return report(soak, history, minutes, code)


def report(soak: Soak, history: dict[str, list[int]], minutes: float, code: int) -> int:
    """Print the table; 0 when nothing unexpected happened."""
    warm = int(len(history["memory"]) * WARM_UP)
    part = max(1, warm // 2)
    first, last = (statistics.mean(history["memory"][i : i + part]) for i in (warm, len(history["memory"]) - part))
    growth = last / first - 1
    spread = {name: (min(history[name][warm:]), max(history[name][warm:])) for name in ("open files", "disk")}
    at = statistics.quantiles(soak.seconds, n=100)
    for outcome, count in sorted(soak.outcomes.items()):
        print(f"{outcome:<28}{count}")
    print(f"{'unexpected':<28}{len(soak.faults)}")
    print(f"{'memory after warm-up':<28}{first / 1e6:.0f} MB, at the end {last / 1e6:.0f} MB ({growth:+.1%})")
    for name, (low, high) in spread.items():
        print(f"{name:<28}{low} to {high}")
    print(f"{'seconds per song':<28}p50 {at[49]:.2f}, p99 {at[98]:.2f}")
    print(f"{'whole run':<28}{minutes:.1f} minutes, server's exit code {code}")
    for fault in soak.faults:
        print(fault, file=sys.stderr)
    steady = growth < MAX_GROWTH and all(high - low <= 4 for low, high in spread.values())
    return 0 if steady and not soak.faults and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
