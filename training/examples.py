"""What stage 1 is shown: prompts as `text.prompt` writes them, and the states of both tracks as codebook 0."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from training.score import KEYS, KINDS, Part, Song, Style, draw_song, draw_style, draw_words, join_words, kind_of
from training.states import band_codes, vocal_codes
from training.tokenizer import VOCABULARY as V
from training.words import TAGS, TEMPO
from yue_core.song import Codes
from yue_core.text.prompt import build_prompt, reference_ids
from yue_core.text.tokenizer import Tokenizer

BATCH_IDS = 2400
POOL, BATCHES_PER_POOL = 24, 6  # examples drawn together, and how many batches of similar lengths are made of them
UNCONDITIONAL = 0.1  # of the examples begin at <xcodec>, as guidance's second branch does
WITH_REFERENCE = 0.4
TOLD = 0.4  # of the kinds of tags are there beside a reference, and half of these tell something else than it has
MIXED = 0.65  # of the references are one track
MIX_FRAMES, TRACKS_FRAMES = (120, 350), (80, 200)  # of a reference
# Of the later sections, follow one before, or all; fewer behind a reference, which they would not need any more.
WITH_EARLIER, WITH_EARLIER_AND_REFERENCE = 0.5, 0.25
GAP = 2500  # ids left out of the count of positions, at most: long songs in short examples (Zhu et al. 2023, PoSE)
# What a frame's targets count: most only go on as before, onsets lie on the grid; a bar's line decides whether the
# section ends, and the first bar's frames on any tempo's grid decide the tempo.
HELD, ON_GRID, DECIDED = 0.2, 1.0, 8.0
MISHEARD = 0.5  # of the sections are read with errors, as a song has that the model itself wrote
MOST_BARS = 5
# What the model is asked besides the next id. Where a section's audio begins: the style, the kind of section, its bars
# and its first chord. Along a reference and in a section's first bar: the style and the key. At each frame of a
# section: the place in the bar, the bars left, the kind, the key, and the chord of the bar that comes next. Names and
# numbers of values.
STYLE = tuple((kind, len(values)) for kind, values in TAGS.items())
END = 24  # behind the last chord
PLAN = (*STYLE, ("kind", len(KINDS)), ("bars", MOST_BARS + 1), ("chord", END))
TRAITS = (*STYLE, ("tonic", len(KEYS)))
TRAITS_FROM = 100  # ids of a reference that have to be heard first
CLIPS = 8  # references in a batch of nothing else
PLACE = (("sixteenth", 16), ("left", MOST_BARS + 1), ("kind", len(KINDS)), ("tonic", len(KEYS)), ("chord", END + 1))
UNASKED = -1


@dataclass(frozen=True)
class Example:
    """One sequence of n ids; ids of audio are its targets, all others weigh nothing."""

    ids: np.ndarray  # [n]
    heard: np.ndarray  # [n] the ids as they are read: audio may have errors
    positions: np.ndarray  # [n]
    weights: np.ndarray  # [n]
    plan: np.ndarray  # [n, PLAN] at the first id of a section's audio, else UNASKED
    traits: np.ndarray  # [n, TRAITS] behind ids of a reference and in the first bar, else UNASKED
    place: np.ndarray  # [n, PLACE] at ids of audio, else UNASKED


@dataclass(frozen=True)
class Stretch:
    """Consecutive ids of an example, fields as there."""

    ids: np.ndarray
    heard: np.ndarray
    weights: np.ndarray
    plan: np.ndarray
    traits: np.ndarray
    place: np.ndarray


def silent_stretch(ids: list[int] | tuple[int, ...]) -> Stretch:
    """Ids that are read and never written."""
    n = len(ids)
    read = np.array(ids, dtype=np.int64)
    return Stretch(read, read, np.zeros(n, dtype=np.float32), *(unasked(n, table) for table in (PLAN, TRAITS, PLACE)))


def unasked(n: int, table: tuple[tuple[str, int], ...]) -> np.ndarray:
    """[n, questions of a table]"""
    return np.full((n, len(table)), UNASKED)


def audio_stretch(song: Song, index: int, rng: np.random.Generator, planned: bool) -> Stretch:
    """The audio of one section, end-of-audio included; plan and traits are asked for where there was a prompt."""
    part, style = song.parts[index], song.style
    codes = np.stack([vocal_codes(part, style), band_codes(part, style)], axis=1)  # [T, 2]
    heard = misheard(codes, style, rng) if rng.random() < MISHEARD else codes
    frame = np.arange(part.length + 1)
    weights = np.where(frame % style.sixteenth == 0, ON_GRID, HELD)
    some_grid = np.any([frame % sixteenth == 0 for sixteenth in TEMPO.values()], axis=0)
    weights[(frame % style.bar == 0) | (frame < style.bar) & some_grid] = DECIDED
    begun = -(-frame // style.bar)  # bars; one begun is one gone, and is left as well
    kind, chords = KINDS.index(kind_of(part.section.label)), chords_of(part, style)
    place = np.stack(
        [
            frame % style.bar // style.sixteenth,
            -(-(part.length - frame) // style.bar),
            np.full(len(frame), kind),
            np.full(len(frame), KEYS.index(style.tonic)),
            np.array([*chords, END])[begun],
        ],
        axis=1,
    )
    n = 2 * part.length + 1
    plan, traits = unasked(n, PLAN), unasked(n, TRAITS)
    if planned:
        plan[0] = [*style_of(style), kind, len(chords), chords[0]]
        traits[: 2 * style.bar] = traits_of(style)

    def ids_of(codes: np.ndarray) -> np.ndarray:
        return np.append(codes.reshape(-1) + V.codebook_start, V.end_of_audio)

    weights, place = (np.repeat(some, 2, axis=0)[:n] for some in (weights.astype(np.float32), place))
    return Stretch(ids_of(codes), ids_of(heard), weights, plan, traits, place)


def chords_of(part: Part, style: Style) -> list[int]:
    """The chord of each bar."""
    return [hit.chord for hit in part.hits if hit.start % style.bar == 0]


def style_of(style: Style) -> list[int]:
    """The values of `STYLE`, as numbers."""
    return [list(values).index(getattr(style, kind)) for kind, values in TAGS.items()]


def traits_of(style: Style) -> list[int]:
    """The values of `TRAITS`, as numbers."""
    return [*style_of(style), KEYS.index(style.tonic)]


def misheard(codes: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Codes [T, 2] with errors: frames from elsewhere, and stretches of up to half a bar held like the frame before."""
    heard = codes.copy()
    wrong = rng.random(len(codes)) < rng.uniform(0, 0.04)
    heard[wrong] = codes[rng.integers(len(codes), size=int(wrong.sum()))]
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.integers(1, len(codes)))
        tracks = slice(0, 2) if rng.random() < 0.7 else slice(1, 2)
        heard[start : start + int(rng.integers(1, style.bar // 2)), tracks] = heard[start - 1, tracks]
    return heard


def differing(rng: np.random.Generator, style: Style, told: Collection[str]) -> Style:
    """A style that may differ in the kinds that tags tell: there the reference is not followed."""
    other = draw_style(rng)
    return replace(style, **{kind: getattr(other, kind) for kind in told if rng.random() < 0.5})


def reference_codes(rng: np.random.Generator, style: Style) -> list[Codes]:
    """A clip of a song of this style: both tracks, or the states that the mix has."""
    other = draw_song(int(rng.integers(1 << 40)), style=style)
    voice = np.concatenate([vocal_codes(part, style) for part in other.parts])
    band = np.concatenate([band_codes(part, style) for part in other.parts])
    mixed = rng.random() < MIXED
    length = min(int(rng.integers(*(MIX_FRAMES if mixed else TRACKS_FRAMES))), len(voice))
    start = int(rng.integers(0, len(voice) - length + 1))
    cut = slice(start, start + length)
    tracks = [band[cut]] if mixed else [voice[cut], band[cut]]
    return [track.astype(np.int16) for track in tracks]


def ask_along(stretch: Stretch, style: Style) -> None:
    """Ask what the reference in a stretch is like."""
    heard = np.flatnonzero(stretch.ids >= V.codebook_start)[TRAITS_FROM:]
    stretch.traits[heard[:-1] + 1] = traits_of(style)


def clips(number: int) -> list[Example]:
    """A batch of references, to listen to: a song has few."""
    rng = np.random.default_rng([number, 2])
    found = []
    for _ in range(CLIPS):
        style = draw_style(rng)
        stretch = silent_stretch(reference_ids(reference_codes(rng, style), V))
        ask_along(stretch, style)
        found.append(joined([stretch], gap=0))
    return found


def example(seed: int, tokenizer: Tokenizer) -> Example:
    """The training sequence of a seed: a section after the head, and none, some or all of those before it."""
    rng = np.random.default_rng([seed, 1])
    song = draw_song(seed)
    index = int(rng.integers(len(song.parts)))
    if rng.random() < UNCONDITIONAL:
        return joined([silent_stretch([V.xcodec]), audio_stretch(song, index, rng, planned=False)], gap=0)
    tags, style, reference = song.tags, song.style, []
    if rng.random() < WITH_REFERENCE:
        words = draw_words(rng, song.style, TOLD)
        tags, style = join_words(rng, [*words.values()]), differing(rng, song.style, words)
        reference = reference_codes(rng, style)
    prompt = build_prompt(tokenizer, V, tags, [part.section for part in song.parts], reference)
    head = silent_stretch(prompt.head)
    if reference:
        ask_along(head, style)
    stretches = [head]
    earlier = WITH_EARLIER_AND_REFERENCE if reference else WITH_EARLIER
    first = int(rng.integers(index)) if index and rng.random() < earlier else index
    for i in range(first, index + 1):
        before = prompt.sections[i]
        if i == first and first > 0:  # sections before may be dropped, as fit_context does it
            before = before[len(prompt.border) :]
        stretches += [silent_stretch(before), audio_stretch(song, i, rng, planned=True)]
    return joined(stretches, gap=int(rng.integers(GAP)) if rng.random() < 0.5 else 0)


def joined(stretches: list[Stretch], gap: int) -> Example:
    """One example of stretches; `gap` positions are left out behind the first."""
    ids, heard, weights, *answers = (
        np.concatenate([getattr(one, name) for one in stretches]) for name in Stretch.__dataclass_fields__
    )
    positions = np.arange(len(ids))
    positions[len(stretches[0].ids) :] += gap
    return Example(ids, heard, positions, weights, *answers)


@lru_cache(maxsize=1)
def pool(number: int, tokenizer: Tokenizer) -> tuple[list[Example], ...]:
    """`BATCHES_PER_POOL` batches in any order, each of examples of similar length, about `BATCH_IDS` in all."""
    drawn = sorted((example(number * 64 + i, tokenizer) for i in range(POOL)), key=lambda one: len(one.ids))
    groups = list(_groups(drawn))
    order = np.random.default_rng(number).permutation(len(groups))
    return tuple(groups[i] for i in order[:BATCHES_PER_POOL])


def _groups(drawn: list[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for one in drawn:
        if group and (len(group) + 1) * len(one.ids) > BATCH_IDS:
            yield group
            group = []
        group.append(one)
    yield group


def batch(number: int, tokenizer: Tokenizer) -> list[Example]:
    """The examples of a step."""
    batches = pool(number // BATCHES_PER_POOL, tokenizer)
    return batches[number % BATCHES_PER_POOL % len(batches)]
