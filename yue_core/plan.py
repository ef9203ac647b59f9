"""What a request comes to before any model runs, and what no song can be made from."""

from __future__ import annotations

from dataclasses import dataclass

from yue_core.errors import ReferenceAudioError, RequestError
from yue_core.song import Section, SongRequest, SongTokens
from yue_core.stage1 import MAX_NEW_TOKENS, section_ids
from yue_core.text.vocabulary import Vocabulary

MAX_VARIATIONS = 8
MAX_LYRICS, MAX_TAGS = 100_000, 5_000  # characters; the context holds some 60,000 of a song
MAX_REFERENCE = 120.0  # seconds; the context holds 300 of one track, and the codec's memory grows with it


@dataclass(frozen=True)
class Plan:
    """A request that was understood and can be sung: what is known before any model runs."""

    request: SongRequest
    sections: tuple[Section, ...]  # of the whole lyrics; the prompt quotes them all
    count: int  # how many of them are sung
    genre_tags: str  # as the prompt has them
    stage1: tuple[str, str]  # language and mode of the checkpoint
    warnings: tuple[str, ...]


def kept_audio(
    plan: Plan, earlier: SongTokens | None, redo_section: int | None, vocabulary: Vocabulary
) -> tuple[list[list[int] | None], list[bool]]:
    """Stage-1 ids per section that stay from an earlier song, None for those to write, and truncated flags."""
    audio: list[list[int] | None] = [None] * plan.count
    truncated = [False] * plan.count
    for i, span in enumerate(earlier.spans if earlier else ()):
        assert earlier is not None
        if i >= plan.count:
            break
        if i + 1 != redo_section:
            audio[i] = section_ids(earlier, span, vocabulary)
            truncated[i] = span.truncated
    return audio, truncated


def check_request(request: SongRequest) -> None:
    """Raise RequestError or ReferenceAudioError for settings that no song can be made from."""
    sampling = request.sampling
    rules = (
        (len(request.lyrics) <= MAX_LYRICS, f"The lyrics have more than {MAX_LYRICS} characters; shorten them."),
        (len(request.genre_tags) <= MAX_TAGS, f"The genre tags have more than {MAX_TAGS} characters; shorten them."),
        (request.seed >= 0, "The seed must be 0 or more; leave it out for a random one."),
        (
            request.num_segments is None or request.num_segments >= 1,
            "The number of segments must be 1 or more; leave it out to sing all sections.",
        ),
        (1 <= request.variations <= MAX_VARIATIONS, f"The variations must be 1 to {MAX_VARIATIONS}."),
        (
            sampling.min_new_tokens <= sampling.max_new_tokens <= MAX_NEW_TOKENS,
            f"max_new_tokens must be {sampling.min_new_tokens} to {MAX_NEW_TOKENS}; 100 tokens are one second.",
        ),
        (sampling.temperature > 0, "The temperature must be above 0."),
        (0 < sampling.top_p <= 1, "top_p must be above 0 and at most 1."),
        (sampling.top_k >= 1, "top_k must be 1 or more."),
        (sampling.repetition_penalty > 0, "The repetition penalty must be above 0; 1 is none."),
    )
    for holds, sentence in rules:
        if not holds:
            raise RequestError(sentence)
    reference = request.reference
    if reference is None:
        return
    if reference.mix and (reference.vocals or reference.instrumental):
        raise ReferenceAudioError("Give either one reference clip or its vocals and instrumental, not both.")
    if not reference.mix and not (reference.vocals and reference.instrumental):
        raise ReferenceAudioError("A dual-track reference needs both tracks: add the missing one.")
    if not 0 <= reference.start < reference.end:
        raise ReferenceAudioError("The reference window must start at 0 or later and end after its start.")
    if reference.end - reference.start > MAX_REFERENCE:
        raise ReferenceAudioError(f"The reference window may last {MAX_REFERENCE:g} seconds; choose a shorter one.")
