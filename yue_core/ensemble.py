"""Several requests in stage 1 at once: callers from different threads share one batch, which takes join and leave."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch

from yue_core.errors import MachineError
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.progress import Progress
from yue_core.stage1 import Stage1Batch, Take, song_capacity
from yue_core.text.vocabulary import Vocabulary

MAX_SONGS = 8  # written at once
SHARE = 0.5  # of a GPU's free memory that stage 1 may take; the rest is for stage 2 and the codec
PATIENCE = 0.05  # seconds between two looks at the cancel switch while another caller drives


class Ensemble:
    """One language model's batch. Any caller with a take in it may drive: one step for all takes.

    The pool is made for the first song and kept, so that memory is constant after it.
    """

    def __init__(self, lm: LMWeights, vocabulary: Vocabulary) -> None:
        self.lm, self.vocabulary = lm, vocabulary
        self._batch: Stage1Batch | None = None
        self._waiting: deque[Take] = deque()
        self._driving = threading.Lock()

    @torch.inference_mode()
    def write(self, takes: Sequence[Take], progress: Progress, section_done: Callable[[], None] = lambda: None) -> None:
        """Write all takes; their `audio` and `truncated` are complete afterwards.

        `section_done` is called when some take has one more section, in this thread.
        Raises what ended a take early, and Cancelled; none of the takes is in the batch then.
        """
        mine = [take for take in takes if take.section is not None]
        budget = sum(take.sampling.max_new_tokens for take in mine for ids in take.audio if ids is None)
        with progress.stage("stage 1", budget, "token"):
            self._waiting.extend(mine)
            done = 0
            try:
                sections = -1
                while open_takes := [take for take in mine if take.section is not None]:
                    if self._driving.acquire(timeout=PATIENCE):
                        try:
                            self._drive()
                        finally:
                            self._driving.release()
                    for take in mine:
                        if take.failure is not None:
                            raise take.failure
                    written = sum(take.written for take in mine)
                    section = min(take.section or 0 for take in open_takes)
                    if section > sections >= 0:
                        section_done()
                    sections = section
                    progress.note(f"section {section + 1}/{len(mine[0].audio)}")
                    progress.advance(written - done)
                    done = written
            finally:
                self._withdraw(mine)
            progress.skip_to_end()

    def release(self) -> None:
        """Give the pool back, unless songs are being written in it; the next song makes a new one."""
        with self._driving:
            if self._batch is not None and all(take is None for take in self._batch.takes):
                self._batch = None

    def _drive(self) -> None:
        """Let waiting takes join, then one step for all; a failure ends every take in the batch."""
        try:
            if self._batch is None:
                self._batch = Stage1Batch(self.lm, self.vocabulary, songs_that_fit(self.lm))
            while self._waiting and None in self._batch.takes:
                self._batch.join(self._waiting.popleft())
            self._batch.step()
        except BaseException as failure:
            for take in self._batch.takes if self._batch else self._waiting:
                if take is not None:
                    take.failure = failure
            self._batch = None
            raise

    def _withdraw(self, takes: Sequence[Take]) -> None:
        """Take out what is unfinished."""
        with self._driving:
            for take in takes:
                if take in self._waiting:
                    self._waiting.remove(take)
                elif self._batch is not None and take in self._batch.takes:
                    self._batch.leave(take)


def songs_that_fit(lm: LMWeights) -> int:
    """How many songs stage 1 can write at once in the free memory of its GPU; MAX_SONGS on other devices.

    Raises MachineError when there is no room for one.
    """
    if lm.device.type != "cuda":
        return MAX_SONGS  # memory is taken as it is written to
    free, _ = torch.cuda.mem_get_info(lm.device)
    each = sum(song_capacity(lm)) * KVPool.bytes_per_token(lm.config, lm.dtype)
    if each > free:
        raise MachineError(
            f"Stage 1 needs {each / 1e9:.1f} GB of GPU memory for a song and {free / 1e9:.1f} GB are free; "
            "close other programs on the GPU or use a larger one."
        )
    return max(1, min(MAX_SONGS, int(free * SHARE) // each))
