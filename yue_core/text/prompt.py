"""What stage 1 reads, as ids: a head (instruction, tags, all lyrics, reference) and a prompt per section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yue_core.errors import LyricsError, ReferenceAudioError
from yue_core.song import Codes, Section
from yue_core.text.codes import codes_to_ids
from yue_core.text.lyrics import join_sections
from yue_core.text.tokenizer import Tokenizer
from yue_core.text.vocabulary import Vocabulary

# Markers are plain text to the tokenizer, so a user's text could imitate one.
SEGMENT_START, SEGMENT_END = "[start_of_segment]", "[end_of_segment]"
REFERENCE_START, REFERENCE_END = "[start_of_reference]", "[end_of_reference]"
MARKER = re.compile(r" ?\[(?:start|end)_of_(?:segment|reference)\]")


@dataclass(frozen=True)
class Prompt:
    """Ids that the user's request becomes; the input for section 0 is head + sections[0]."""

    head: tuple[int, ...]
    sections: tuple[tuple[int, ...], ...]  # put before each section's audio, without the head
    border: tuple[int, ...]  # end of the segment before; every section's prompt but the first begins with it
    warnings: tuple[str, ...] = ()


def build_prompt(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    genre_tags: str,
    sections: Sequence[Section],
    reference: Sequence[Codes] = (),
) -> Prompt:
    """The ids of a request (facts: upstream's prompt layout).

    `sections` are all sections of the lyrics, sung in this request or not: the head holds the full lyrics.
    `reference` is empty, one track or (vocals, instrumental), codes [T] of codebook 0, cut to their window.
    Section markers in tags or lyrics are removed from the prompt with a warning, so that only we set borders.
    """
    lyrics = join_sections(sections)
    head = tokenizer.encode(
        "Generate music from the given lyrics segment by segment.\n"
        f"[Genre] {_without_markers(genre_tags)}\n{_without_markers(lyrics)}"
    )
    if reference:
        head += tokenizer.encode(REFERENCE_START)
        head += reference_ids(reference, vocabulary)
        head += tokenizer.encode(REFERENCE_END)
    begin, border = tokenizer.encode(SEGMENT_START), tokenizer.encode(SEGMENT_END)
    audio = [vocabulary.start_of_audio, vocabulary.xcodec]
    prompts = [begin + tokenizer.encode(_without_markers(section.prompt)) + audio for section in sections]
    found = dict.fromkeys(marker.strip() for text in (genre_tags, lyrics) for marker in MARKER.findall(text))
    warnings = (f"Removed, as it marks borders inside the prompt: {', '.join(found)}.",) if found else ()
    return Prompt(
        head=tuple(head),
        sections=tuple(tuple(border + ids if i else ids) for i, ids in enumerate(prompts)),
        border=tuple(border),
        warnings=warnings,
    )


def reference_ids(tracks: Sequence[Codes], vocabulary: Vocabulary) -> list[int]:
    """Ids of one track [T], or of vocals and instrumental interleaved, as one stretch of audio.

    Raises ReferenceAudioError for tracks of different or no length.
    """
    if len({len(track) for track in tracks}) != 1 or not len(tracks[0]):
        raise ReferenceAudioError(
            "The reference is empty or its tracks differ in length: give clips that cover the same time."
        )
    interleaved = np.stack(tracks, axis=1).reshape(1, -1)  # [1, T * tracks]
    codes = codes_to_ids(interleaved, vocabulary)
    return [vocabulary.start_of_audio, vocabulary.xcodec, *codes, vocabulary.end_of_audio]


def fit_context(prompt: Prompt, blocks: Sequence[Sequence[int]], budget: int) -> tuple[list[int], int]:
    """The input for section `len(blocks)` in at most `budget` ids, and how many blocks it leaves out.

    A block is an earlier section: its prompt and its audio ids, end-of-audio included; give all of them. The
    head stays and the oldest blocks go, whole (upstream keeps the last ids, and so loses the tags and lyrics:
    facts, ecosystem, quirk 9). The first block kept loses its border, since the segment that it ends is gone.

    Raises LyricsError when the head and the section's prompt alone are too long.
    """
    section = len(blocks)
    parts = [*blocks, prompt.sections[section]]
    length = len(prompt.head) + sum(map(len, parts))
    dropped = 0
    while length > budget and dropped < section:
        length -= len(parts[dropped]) + (0 if dropped else len(prompt.border))
        dropped += 1
    if length > budget:
        raise LyricsError(
            f"Section {section + 1} is too long: tags, lyrics and reference take {length} of {budget} ids, "
            "so shorten them or ask for shorter sections."
        )
    kept = [token for part in parts[dropped:] for token in part]
    return [*prompt.head, *(kept[len(prompt.border) :] if dropped else kept)], dropped


def _without_markers(text: str) -> str:
    """Text without markers; the space that stays in their place keeps two halves from making a new one."""
    return MARKER.sub(" ", text)
