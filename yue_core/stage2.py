"""Stage 2: the acoustic language model adds codebooks 1 to 7 to codebook 0, all windows of the song in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yue_core.errors import MachineError
from yue_core.lm.frames import FrameRows
from yue_core.lm.generation import GenerationDefaults
from yue_core.lm.graph import CHUNK_STEPS, Captured
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.sampler import draw, noise, penalise, truncate
from yue_core.lm.transformer import forward, logits, prefill
from yue_core.progress import Progress
from yue_core.song import Codes
from yue_core.text.vocabulary import Vocabulary

WINDOW = 300  # frames that stage 2 was trained on: six seconds
PROMPT_EXTRA = 3  # <SOA>, <stage_1> before the window's codes, <stage_2> after


Grid = np.ndarray[tuple[int, int], np.dtype[np.int64]]  # codes [K, T]
Choose = Callable[[Tensor, int, int], Tensor]  # hidden states [R, H], frame, codebook -> ids [R]


@dataclass(frozen=True)
class Window:
    """A stretch of one track that stage 2 sees alone."""

    track: int
    start: int  # frames
    length: int
    keep: int  # its last `keep` frames are new; earlier ones belong to the window before


@dataclass(frozen=True)
class Drawing:
    """How to draw where the checkpoint's own settings are not greedy; upstream names none for stage 2."""

    settings: GenerationDefaults
    songs: Sequence[tuple[int, int, int]]  # per track: seed, variation, track of the song counted from 1

    def uniforms(self, window: Window, per_frame: int) -> Tensor:
        """One uniform per code that is drawn [T, K - 1]; a frame has the same ones in whatever window it lies."""
        seed, variation, track = self.songs[window.track]
        values = noise(seed, variation, window.start * per_frame, window.length * per_frame, track)
        return values.view(window.length, per_frame)


def windows_of(lengths: Sequence[int], overlap: bool = True) -> list[Window]:
    """Cut tracks of `lengths` frames into windows, longest first.

    With `overlap` a remainder becomes the last full window of its track, of which only the new frames are kept:
    a short window on its own sounds degraded (facts: upstream quirk 15). Without, the remainder stands alone, as
    upstream has it.
    """
    windows = []
    for track, total in enumerate(lengths):
        for start in range(0, total, WINDOW):
            length = min(WINDOW, total - start)
            if overlap and length < WINDOW <= total:
                windows.append(Window(track, total - WINDOW, WINDOW, length))
            else:
                windows.append(Window(track, start, length, length))
    return sorted(windows, key=lambda window: -window.length)


def refine(
    lm: LMWeights,
    vocabulary: Vocabulary,
    tracks: Sequence[Codes],
    progress: Progress,
    *,
    overlap: bool = True,
    batch: int | None = None,
    drawing: Drawing | None = None,
    finished: dict[Window, Grid] | None = None,
) -> list[Grid]:
    """Codes [K, T] of every track, given its codebook-0 codes [T] with T >= 1.

    Code k is drawn greedily among the head's ids of codebook k; `lm.drawable` must be the ids of codebooks 1 to
    K - 1 in order. If it is anything else, each step draws among all of it and codes may fall outside
    0..codebook_size - 1, as upstream's do. `batch` bounds the windows that run at once (None: what memory holds).
    Windows in `finished` are not run again, and new ones are put there.
    With `drawing` codes are drawn as it says; no window's codes depend on the others.
    """
    every = windows_of([len(track) for track in tracks], overlap)
    finished = {} if finished is None else finished
    windows = [window for window in every if window not in finished]
    choose: Choose | None
    size = batch or windows_that_fit(lm, vocabulary, len(windows))
    codes: list[Grid] = [np.zeros((vocabulary.num_codebooks, len(track)), dtype=np.int64) for track in tracks]
    groups = [windows[i : i + size] for i in range(0, len(windows), size)]
    with progress.stage("stage 2", sum(group[0].length for group in groups), "frame"):
        for group in groups:
            pieces = [tracks[w.track][w.start :][: w.length] for w in group]
            if drawing:
                choose = _chooser(lm, vocabulary, group, drawing)
            else:
                choose = None if lm.kernels else _greedy(lm, vocabulary)
            refined = _run(lm, vocabulary, pieces, choose, progress)
            finished.update(zip(group, refined, strict=True))
    for window in every:
        end = window.start + window.length
        codes[window.track][:, end - window.keep : end] = finished[window][:, -window.keep :]
    return codes


def slots_of(length: int, vocabulary: Vocabulary) -> int:
    """Tokens that a window of `length` frames takes in the context, and one that FrameRows writes beyond the end."""
    return length + PROMPT_EXTRA + length * vocabulary.num_codebooks + 1


def windows_that_fit(lm: LMWeights, vocabulary: Vocabulary, wanted: int) -> int:
    """How many windows the free memory of a GPU holds at once; all of them on other devices.

    Raises MachineError when not even one fits.
    """
    if lm.device.type != "cuda":
        return wanted
    free, _ = torch.cuda.mem_get_info(lm.device)
    free += torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
    each = slots_of(WINDOW, vocabulary) * KVPool.bytes_per_token(lm.config, lm.dtype)
    fitting = int(free * 0.9) // each
    if not fitting:
        raise MachineError(
            f"Stage 2 needs {each / 1e9:.1f} GB of free GPU memory for one window and {free / 1e9:.1f} GB are free; "
            "close other programs on the GPU or use a larger one."
        )
    return min(wanted, fitting)


def _run(
    lm: LMWeights, vocabulary: Vocabulary, windows: Sequence[Codes], choose: Choose | None, progress: Progress
) -> list[Grid]:
    """Codes [K, T] of each window (longest first), all side by side, seven passes per frame.

    With `choose` on the plain forward pass; without, greedily, as one captured graph per frame.
    """
    capacity = [slots_of(len(w), vocabulary) for w in windows]
    pool = KVPool(lm.config, capacity, lm.device, lm.dtype, lm.crosswise)
    base = [torch.from_numpy(w.astype(np.int64)).to(lm.device) + vocabulary.codebook_start for w in windows]
    for group in _equal_lengths(windows):
        rows = list(range(group.start, group.stop))
        prompt = _prompts(base[group], vocabulary)  # [R, T + 3]
        prefill(lm, pool, prompt[:, :-1], rows)
        progress.check()
    if choose:
        drawn = _frames_plain(lm, vocabulary, pool, base, choose, progress)
    else:
        drawn = _frames_captured(lm, vocabulary, pool, base, progress)
    starts = torch.tensor([vocabulary.codebook(k).start for k in _drawn_books(vocabulary)], device=lm.device)
    results: list[Grid] = []
    for window, ids in zip(windows, drawn, strict=True):
        codes = (ids - starts).t().cpu().numpy()
        results.append(np.concatenate([window[None].astype(np.int64), codes]))
    return results


def _frames_plain(
    lm: LMWeights, vocabulary: Vocabulary, pool: KVPool, base: Sequence[Tensor], choose: Choose, progress: Progress
) -> list[Tensor]:
    """Ids [T, K - 1] of each window after its prompt, given its codebook-0 ids [T]."""
    last = torch.full((len(base), 1), vocabulary.stage_2, device=lm.device)  # [R, 1]
    drawn = []  # per frame: [R, K - 1] ids
    for frame in range(len(base[0])):
        rows = [row for row, given in enumerate(base) if len(given) > frame]
        given = torch.stack([base[row][frame] for row in rows])[:, None]
        token = torch.cat([last[: len(rows)], given], dim=1)  # [R, 2]
        chosen = []
        for k in _drawn_books(vocabulary):
            hidden = forward(lm, pool, token, rows)[:, -1]
            token = choose(hidden, frame, k)[:, None]
            chosen.append(token)
        last = token
        drawn.append(torch.cat(chosen, dim=1))
        progress.advance()
    return [torch.stack([frame[row] for frame in drawn[: len(given)]]) for row, given in enumerate(base)]


def _frames_captured(
    lm: LMWeights, vocabulary: Vocabulary, pool: KVPool, base: Sequence[Tensor], progress: Progress
) -> list[Tensor]:
    """As `_frames_plain`, on CUDA: the host only looks at the progress."""
    from yue_core.lm.kernels.step import FastStep  # triton is there where CUDA is

    rows = FrameRows(
        pool,
        lm.drawable,
        [_rows(lm, vocabulary, k) for k in _drawn_books(vocabulary)],
        torch.nn.utils.rnn.pad_sequence(list(base), batch_first=True),  # [R, T]
        torch.tensor([len(given) for given in base], device=lm.device),
        vocabulary.stage_2,
        FastStep(lm, pool, len(base), new=2).run,
        FastStep(lm, pool, len(base)).run,
    )
    step = Captured(rows.step, lm.device)
    for frame in range(len(base[0])):
        step()
        if frame % CHUNK_STEPS == 0 and lm.device.type == "cuda":
            torch.cuda.current_stream(lm.device).synchronize()  # a cancelled song stops here
        progress.advance()
    return [rows.drawn[row, : len(given)] for row, given in enumerate(base)]


def _drawn_books(vocabulary: Vocabulary) -> range:
    """The codebooks that stage 2 draws."""
    return range(1, vocabulary.num_codebooks)


def _prompts(base: Sequence[Tensor], vocabulary: Vocabulary) -> Tensor:
    """Prompts [R, T + 3] of windows of equal length, given their codebook-0 ids [T]."""
    ids = torch.stack(list(base))
    before = torch.tensor([vocabulary.start_of_audio, vocabulary.stage_1], device=ids.device)
    after = torch.tensor([vocabulary.stage_2], device=ids.device)
    count = len(base)
    return torch.cat([before.expand(count, -1), ids, after.expand(count, -1)], dim=1)


def _equal_lengths(windows: Sequence[Codes]) -> list[slice]:
    """Slices of neighbouring windows of equal length."""
    borders = [i for i in range(1, len(windows)) if len(windows[i]) != len(windows[i - 1])]
    return [slice(a, b) for a, b in zip([0, *borders], [*borders, len(windows)], strict=True)]


def _rows(lm: LMWeights, vocabulary: Vocabulary, k: int) -> slice:
    """The part of the head that a step for codebook `k` draws from."""
    size = vocabulary.codebook_size
    if len(lm.drawable) != size * (vocabulary.num_codebooks - 1):
        return slice(None)
    return slice((k - 1) * size, k * size)


def _greedy(lm: LMWeights, vocabulary: Vocabulary) -> Choose:
    """The likeliest id of each step."""
    places = {k: _rows(lm, vocabulary, k) for k in _drawn_books(vocabulary)}
    ids = {k: lm.drawable[rows] for k, rows in places.items()}

    def choose(hidden: Tensor, _: int, k: int) -> Tensor:
        return ids[k].take(logits(lm, hidden, places[k]).argmax(-1))

    return choose


def _chooser(lm: LMWeights, vocabulary: Vocabulary, windows: Sequence[Window], drawing: Drawing) -> Choose:
    """Ids drawn with a checkpoint's own settings: repetition penalty, then top-k and top-p where it samples."""
    settings, per_frame = drawing.settings, vocabulary.num_codebooks - 1
    uniforms = [drawing.uniforms(window, per_frame).to(lm.device) for window in windows]
    seen = torch.zeros(len(windows), len(lm.drawable), dtype=torch.bool, device=lm.device)
    top_k = torch.tensor([[settings.top_k]], device=lm.device)

    def choose(hidden: Tensor, frame: int, k: int) -> Tensor:
        count, rows = len(hidden), _rows(lm, vocabulary, k)
        here = seen[:count, rows]
        scores = penalise(logits(lm, hidden, rows), here, torch.tensor(settings.repetition_penalty))
        if settings.do_sample:
            kept = truncate(scores / settings.temperature, top_k.expand(count, 1), torch.tensor(settings.top_p))
            index = draw(kept, torch.stack([uniform[frame, k - 1] for uniform in uniforms[:count]]))
        else:
            index = scores.argmax(-1)
        here.scatter_(1, index[:, None], True)
        return lm.drawable[rows][index]

    return choose
