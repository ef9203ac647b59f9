"""Hearing a song before it is finished: parts are rendered in a thread while later sections are written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import torch

from yue_core.audio.codec import CONTEXT
from yue_core.progress import Progress
from yue_core.song import FRAMES_PER_SECOND, SAMPLE_RATE, SongTokens, Waveform
from yue_core.stage2 import WINDOW, Grid, Window

HOP = SAMPLE_RATE // FRAMES_PER_SECOND  # samples per frame
HELD_BACK = 3 * CONTEXT  # frames at the end of a part that codec and vocoder still change when more follows

Render = Callable[[SongTokens, dict[Window, Grid], Progress], Waveform]
HandOut = Callable[[float, Waveform], None]  # where the part begins in the song, in seconds; its samples


@dataclass
class Preview:
    """Renders whole windows of what is written so far, and hands out what has not been heard yet.

    A part sounds like the finished song, but for its level: mastering looks at the whole song and comes last. What
    stage 2 made here stays in `windows`, so that the finished song does not make it again.
    """

    render: Render
    hand_out: HandOut | None  # nothing is rendered for nobody
    progress: Progress  # of the request; the parts are not counted there, but stop with it
    windows: dict[Window, Grid] = field(default_factory=dict)
    _heard: int = 0  # frames
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _jobs: list[Future[None]] = field(default_factory=list)

    def add(self, tokens: SongTokens) -> None:
        """More of the song is written: render it when the part before is done."""
        frames = len(tokens.vocals) // WINDOW * WINDOW
        if self.hand_out and frames > self._heard + HELD_BACK:
            whole = SongTokens(tokens.vocals[:frames], tokens.instrumental[:frames], tokens.spans)
            self._jobs.append(self._worker.submit(self._part, whole))

    def _part(self, tokens: SongTokens) -> None:
        silent = Progress(None, follow=self.progress)
        with torch.inference_mode():
            audio = self.render(tokens, self.windows, silent)
        end = len(tokens.vocals) - HELD_BACK
        if self.hand_out and end > self._heard:
            self.progress.heard()
            self.hand_out(self._heard / FRAMES_PER_SECOND, audio[HOP * self._heard : HOP * end])
            self._heard = end

    def __enter__(self) -> Preview:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Wait for the parts under way; raises what went wrong in them, unless something else did before."""
        self._worker.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for job in self._jobs:
                job.result()
