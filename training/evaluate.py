"""scripts/eval_tiny: measure the demo profile on songs and requests it has never seen."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from training.codec_bars import codec_bars
from training.report import Bar, summary
from training.song_bars import control_bars, form_bars, music_bars, reference_bars
from yue_core.pipeline import Pipeline

GROUPS = ("codec", "music", "control", "reference", "form", "speed")
HELD_OUT = 1 << 42  # first seed; training never goes there
CODEC_SONGS, SONGS = 6, 10  # of the codec's and the music's bars, of a small sample too: fewer can be luck
LYRICS = """
[verse]
Streetlights hum along the quiet bay
Paper boats are drifting on the rain
Every window holds a little day
Every whistle is a leaving train

[chorus]
Leave a light on I am coming home
Over water over stone
Leave a light on let the morning know
Every way is where I go
"""
ONE_SONG = """
import sys
from yue_core.pipeline import Pipeline
from yue_core.song import SongRequest
song = Pipeline.load("tiny").generate(SongRequest("pop medium piano female bright vocal happy", sys.argv[1], 1))[0]
print(song.duration)
"""


def speed_bar() -> Bar:
    """Seconds that 20 seconds of song take in a process of its own, from its start to its end."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ONE_SONG, LYRICS], capture_output=True, text=True, check=True)
    wall = time.monotonic() - start
    return Bar(
        "speed: seconds for 20 s of song, start included",
        wall * 20 / float(done.stdout),
        "<=",
        40.0,
        f"{float(done.stdout):.0f} s of song in {wall:.0f} s",
    )


def evaluate(groups: Sequence[str] = GROUPS, quick: bool = False) -> bool:
    """Print every bar of some groups as it is measured; whether all hold."""
    few, clips = (2, 3) if quick else (6, 10)
    pipeline = Pipeline.load("tiny", device="cpu")
    measures = {
        "codec": lambda: codec_bars(pipeline, range(HELD_OUT, HELD_OUT + CODEC_SONGS)),
        "music": lambda: music_bars(pipeline, range(HELD_OUT + 100, HELD_OUT + 100 + SONGS)),
        "control": lambda: control_bars(pipeline, range(HELD_OUT + 200, HELD_OUT + 200 + few)),
        "reference": lambda: reference_bars(pipeline, range(HELD_OUT + 300, HELD_OUT + 300 + clips)),
        "form": lambda: form_bars(pipeline, range(HELD_OUT + 400, HELD_OUT + 400 + few)),
        "speed": lambda: [speed_bar()],
    }
    bars: list[Bar] = []
    for group in groups:
        for bar in measures[group]():
            print(bar, flush=True)
            bars.append(bar)
    print(summary(bars))
    return all(bar.holds for bar in bars)


def main() -> int:
    """Print bars; 0 when all hold."""
    it = argparse.ArgumentParser(prog="scripts/eval_tiny", description=__doc__)
    it.add_argument("--quick", action="store_true", help="a small sample")
    it.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    arguments = it.parse_args()
    return 0 if evaluate(arguments.only, arguments.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
