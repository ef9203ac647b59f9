"""The pictures in the docs: loss curves of a training, and a song with its sections."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from training.measure import frame_levels
from yue_core.pipeline import Pipeline
from yue_core.song import FRAMES_PER_SECOND, SAMPLE_RATE, Song, SongRequest

ROOT = Path(__file__).resolve().parents[1]
TAGS = "inspiring female uplifting pop airy vocal electronic bright"

PARTS = {
    "semantic": "codec: states (nats)",
    "decoder": "codec: decoder",
    "vocoder-vocals": "vocoder: vocals",
    "vocoder-instrumental": "vocoder: instrumental",
    "stage1": "stage 1 (nats, with its questions)",
    "stage2": "stage 2 (nats per code, read with errors)",
}
SMOOTH = 20  # steps


def draw_losses(work: Path, target: Path) -> None:
    """One panel per training that has a log in `work`."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.5), layout="constrained")
    for axis, (name, title) in zip(axes.flat, PARTS.items(), strict=True):
        log = work / f"{name}.log"
        if not log.exists():
            axis.axis("off")
            continue
        steps, losses = np.loadtxt(log, usecols=(0, 1), unpack=True)
        axis.plot(steps, losses, color="0.8", linewidth=0.6)
        width = min(SMOOTH, len(losses))
        axis.plot(steps[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=80)


def draw_song(song: Song, target: Path) -> None:
    """Spectrogram of the song, levels of its stems, and its sections along the time."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 5), sharex=True, height_ratios=(3, 1), layout="constrained")
    top.specgram(song.audio["song"] + 1e-9, NFFT=4096, Fs=SAMPLE_RATE, noverlap=3072, vmin=-120, vmax=-40, cmap="magma")
    top.set_ylim(0, 8000)
    top.set_ylabel("Hz")
    for name, colour in (("vocals", "tab:red"), ("instrumental", "tab:blue")):
        levels = frame_levels(song.audio[name], SAMPLE_RATE)
        bottom.plot(
            np.arange(len(levels)) / FRAMES_PER_SECOND, levels.clip(-70), color=colour, label=name, linewidth=0.8
        )
    bottom.set_ylabel("dB")
    bottom.set_xlabel("seconds")
    bottom.legend(loc="lower right", fontsize=8)
    for span in song.tokens.spans:
        start, end = span.start / FRAMES_PER_SECOND, span.end / FRAMES_PER_SECOND
        top.axvline(end, color="white", linewidth=1)
        bottom.axvline(end, color="0.5", linewidth=1)
        top.text((start + end) / 2, 7300, f"[{span.label}]", color="white", ha="center")
    figure.savefig(target, dpi=80)


def main() -> None:
    """Draw both pictures into docs/; the song is sung for it."""
    it = argparse.ArgumentParser(prog="scripts/draw_tiny", description=__doc__)
    it.add_argument("--work", type=Path, default=ROOT / "build" / "train_tiny", help="where the training logs are")
    it.add_argument("--seed", type=int, default=1)
    arguments = it.parse_args()
    if arguments.work.is_dir():
        draw_losses(arguments.work, ROOT / "docs" / "tiny-training.png")
    lyrics = (ROOT / "examples" / "harbour_lights.txt").read_text()
    song = Pipeline.load("tiny", device="cpu").generate(SongRequest(TAGS, lyrics, arguments.seed))[0]
    draw_song(song, ROOT / "docs" / "tiny-song.png")


if __name__ == "__main__":
    main()
