"""Stage 1: the semantic language model writes two interleaved tracks of codebook-0 codes, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from yue_core.lm.decoder import make_decoder
from yue_core.lm.guided import Draw
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.sampler import draw, noise
from yue_core.lm.transformer import prefill
from yue_core.song import TOKENS_PER_FRAME, Codes, Sampling, SectionSpan, SongTokens
from yue_core.text.prompt import Prompt, fit_context
from yue_core.text.vocabulary import Vocabulary

FIRST_GUIDANCE, LATER_GUIDANCE = 1.5, 1.2  # upstream's scales for the first section and the others
MAX_NEW_TOKENS = 6000  # per section: one minute


@dataclass(eq=False)  # two takes of the same request are still two
class Take:
    """One song being written; it has as many sections as `audio` has places, and the prompt may hold more."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    variation: int
    audio: list[list[int] | None]  # per section its ids with the closing end-of-audio, None until written
    truncated: list[bool]  # per section: its budget ran out
    warnings: list[str] = field(default_factory=list)
    written: int = 0  # tokens drawn so far
    failure: BaseException | None = None  # what ended it early

    @property
    def section(self) -> int | None:
        """The section to write next, None when the song is complete."""
        return next((i for i, ids in enumerate(self.audio) if ids is None), None)

    def guidance(self, section: int) -> float:
        """Guidance scale of one section."""
        default = FIRST_GUIDANCE if section == 0 else LATER_GUIDANCE
        return default if self.sampling.guidance_scale is None else self.sampling.guidance_scale

    def check(self, max_positions: int) -> None:
        """Raise LyricsError when some section cannot fit into the context whatever is dropped."""
        budget = max_positions - self.sampling.max_new_tokens - 1
        for section in range(len(self.audio)):
            fit_context(self.prompt, self.prompt.sections[:section], budget)

    def context(self, section: int, max_positions: int) -> list[int]:
        """The ids before section `section`'s audio, cut to what the model can hold beside the section's budget."""
        blocks = [
            [*prompt, *(ids or ())]
            for prompt, ids in zip(self.prompt.sections[:section], self.audio[:section], strict=True)
        ]
        budget = max_positions - self.sampling.max_new_tokens - 1
        ids, dropped = fit_context(self.prompt, blocks, budget)
        if dropped:
            self.warnings.append(
                f"section {section + 1} was written without hearing the first {dropped} sections: the context is full."
            )
        return ids


def song_capacity(lm: LMWeights) -> list[int]:
    """Slots of a song's two rows: prompted, unconditional."""
    longest = lm.config.max_positions
    return [longest, min(longest, MAX_NEW_TOKENS + 1)]


class Stage1Batch:
    """Several takes written at once; takes join and leave between steps, and none depends on the others.

    Each song has two rows of the pool side by side: the prompted one and the unconditional one, which starts anew
    in each section from the prompt's last token.
    """

    def __init__(self, lm: LMWeights, vocabulary: Vocabulary, songs: int, choose: Draw = draw) -> None:
        self.lm, self.vocabulary = lm, vocabulary
        self.pool = KVPool(lm.config, song_capacity(lm) * songs, lm.device, lm.dtype, lm.crosswise)
        self.takes: list[Take | None] = [None] * songs
        self._cached: list[list[int]] = [[] for _ in range(songs)]  # ids in each prompted row
        self._before: list[int] = [0] * songs  # tokens that the take had written before the open section
        self._end = int((lm.drawable == vocabulary.end_of_audio).nonzero()[0, 0])
        self._decoder = make_decoder(lm, self.pool, self._end, songs, MAX_NEW_TOKENS, choose)

    @property
    def pace(self) -> int:
        """Tokens that one step draws for each take."""
        return self._decoder.pace

    def join(self, take: Take) -> None:
        """Add a take; raises ValueError when every place is taken."""
        place = self.takes.index(None)
        self.takes[place] = take
        self._open(place)

    def leave(self, take: Take) -> None:
        """Remove a take, finished or not."""
        place = self.takes.index(take)
        self._decoder.state.close(place)
        self._decoder.changed()
        self.takes[place] = None

    def step(self) -> list[Take]:
        """Draw the next tokens of every take in the batch; returns the takes that are complete and have left."""
        active = [(place, take) for place, take in enumerate(self.takes) if take is not None]
        if not active:
            return []
        over = self._decoder.advance(
            [place for place, _ in active], [take.sampling.repetition_penalty != 1 for _, take in active]
        )
        finished = []
        for place, take in active:
            take.written = min(take.written + self.pace, self._before[place] + take.sampling.max_new_tokens)
            if place in over:
                self._close(place, take)
                if take.section is None:
                    self.takes[place] = None
                    finished.append(take)
                else:
                    self._open(place)
        return finished

    def _open(self, place: int) -> None:
        """Bring the prompted row to the end of the next section's prompt, one token short."""
        take = self.takes[place]
        assert take is not None
        section = take.section
        assert section is not None, "a complete take has nothing to write"
        ids = take.context(section, self.lm.config.max_positions)
        cond, uncond = 2 * place, 2 * place + 1
        held = [ids[: self.pool.length[2 * other]] for other, ids in enumerate(self._cached)]  # the last may be unfed
        shared = [common_prefix(cached, ids[:-1]) for cached in held]
        kept = max(shared)
        if kept > shared[place]:  # another take has read more of this prompt: a variation, or the same tags
            self.pool.copy(2 * shared.index(kept), cond)
        self.pool.cut(cond, kept)
        self.pool.cut(uncond, 0)
        self._cached[place] = ids[:kept]  # true also when the prefill is interrupted
        prefill(self.lm, self.pool, torch.tensor([ids[kept:-1]], device=self.lm.device), [cond])
        self._cached[place] = ids
        self._before[place] = take.written
        earlier = sum(len(audio) for audio in take.audio[:section] if audio)
        self._decoder.state.open(
            place,
            ids[-1],
            torch.isin(self.lm.drawable, torch.tensor(ids, device=self.lm.device)),
            noise(take.seed, take.variation, earlier, take.sampling.max_new_tokens),
            take.guidance(section),
            take.sampling,
        )
        self._decoder.changed()

    def _close(self, place: int, take: Take) -> None:
        section = take.section
        assert section is not None
        drawn = self._decoder.state.close(place)
        self._decoder.changed()
        ids = self.lm.drawable[drawn].tolist()
        ended = ids[-1] == self.vocabulary.end_of_audio
        take.written = self._before[place] + len(ids)
        self._cached[place] = self._cached[place] + ids[:-1]  # the last one was drawn but never fed
        take.audio[section] = ids if ended else [*ids, self.vocabulary.end_of_audio]
        take.truncated[section] = not ended


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def split_tracks(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[Codes, Codes]:
    """One section's ids (end-of-audio included or not) to vocal and instrumental codes [T].

    A section that ends on half a frame gets its last instrumental code again, so that no sung code is lost.
    """
    codes = [i - vocabulary.codebook_start for i in ids if i != vocabulary.end_of_audio]
    if len(codes) % TOKENS_PER_FRAME:
        codes.append(codes[-2] if len(codes) > 1 else codes[-1])
    both = np.array(codes, dtype=np.int16).reshape(-1, TOKENS_PER_FRAME)
    return both[:, 0].copy(), both[:, 1].copy()


def section_ids(tokens: SongTokens, span: SectionSpan, vocabulary: Vocabulary) -> list[int]:
    """Stage-1 ids of one section, closing end-of-audio included."""
    both = np.stack([tokens.vocals, tokens.instrumental], axis=1)[span.start : span.end]
    return [*(both.reshape(-1).astype(int) + vocabulary.codebook_start).tolist(), vocabulary.end_of_audio]


def song_tokens(take: Take, labels: Sequence[str], vocabulary: Vocabulary) -> SongTokens:
    """The tracks and section spans of a take, as far as it is written without a gap."""
    vocals, instrumental, spans = [], [], []
    start = 0
    for label, ids, truncated in zip(labels, take.audio, take.truncated, strict=True):
        if ids is None:
            break
        voice, backing = split_tracks(ids, vocabulary)
        vocals.append(voice)
        instrumental.append(backing)
        spans.append(SectionSpan(label, start, start + len(voice), truncated))
        start += len(voice)
    return SongTokens(np.concatenate(vocals), np.concatenate(instrumental), tuple(spans))
