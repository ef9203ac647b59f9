"""The song's whole way, from a request to finished audio; all models are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from yue_core.audio.codec import CODEC_RATE, Codec
from yue_core.audio.files import read_clip
from yue_core.audio.mastering import Track, fade_out, limit, master
from yue_core.audio.vocoder import Vocoder
from yue_core.device import PRECISIONS, default_device, default_precision, usable_device
from yue_core.ensemble import Ensemble
from yue_core.errors import ReferenceAudioError, RequestError
from yue_core.lm.checkpoint import STAGE1, STAGE2
from yue_core.lm.generation import read_generation_config
from yue_core.lm.load import load_lm
from yue_core.progress import Progress
from yue_core.song import Codes, Reference, Sampling, Section, Song, SongRequest, SongTokens
from yue_core.stage1 import MAX_NEW_TOKENS, Take, section_ids, song_tokens
from yue_core.stage2 import Drawing, refine
from yue_core.text.language import checkpoint_language, detect_language, language_tags
from yue_core.text.lyrics import parse_lyrics
from yue_core.text.prompt import build_prompt
from yue_core.text.tags import clean_tags, known_tags
from yue_core.text.tokenizer import Tokenizer
from yue_core.text.vocabulary import YUE, Vocabulary
from yue_core.weights.manifest import ProfileFiles, profile_files, weights_root

MAX_VARIATIONS = 8
MAX_LYRICS, MAX_TAGS = 100_000, 5_000  # characters; the context holds some 60,000 of a song
MAX_REFERENCE = 120.0  # seconds; the context holds 300 of one track, and the codec's memory grows with it
SMALL_WIDTH = 256  # hidden size up to which a product is too short to be shared by threads


@dataclass(frozen=True)
class Plan:
    """A request that was understood and can be sung: what is known before any model runs."""

    request: SongRequest
    sections: tuple[Section, ...]  # of the whole lyrics; the prompt quotes them all
    count: int  # how many of them are sung
    genre_tags: str  # as the prompt has them
    stage1: tuple[str, str]  # language and mode of the checkpoint
    warnings: tuple[str, ...]


class Pipeline:
    """Every model of one profile, on one device."""

    def __init__(self, files: ProfileFiles, device: torch.device, precision: str) -> None:
        dtype, int8 = PRECISIONS[precision], precision == "int8"
        self.files, self.device, self.precision = files, device, precision
        self.vocabulary = vocabulary = files.vocabulary
        self.tokenizer = Tokenizer(files.tokenizer)
        self.tags = known_tags(files.tags)
        semantic = [vocabulary.end_of_audio, *vocabulary.codebook(0)]
        acoustic = range(vocabulary.codebook(1).start, vocabulary.codebook(vocabulary.num_codebooks - 1).stop)
        expect = (STAGE1, STAGE2) if vocabulary == YUE else (None, None)
        ensembles = {
            folder: Ensemble(
                load_lm(folder, semantic, normaliser=True, device=device, dtype=dtype, int8=int8, expect=expect[0]),
                vocabulary,
            )
            for folder in dict.fromkeys(files.stage1.values())
        }
        self.stage1 = {key: ensembles[folder] for key, folder in files.stage1.items()}
        self.stage2 = load_lm(
            files.stage2, acoustic, normaliser=False, device=device, dtype=dtype, int8=int8, expect=expect[1]
        )
        if device.type == "cpu" and self.stage2.embedding.shape[1] <= SMALL_WIDTH:
            torch.set_num_threads(1)
        self.drawing = {key: read_generation_config(folder) for key, folder in files.stage1.items()}
        self.stage2_drawing = read_generation_config(files.stage2)
        self.codec = Codec.load(files.codec, device)
        self.vocoders = {
            "vocals": Vocoder.load(files.vocoder_vocals, device),
            "instrumental": Vocoder.load(files.vocoder_instrumental, device),
        }

    @classmethod
    def load(
        cls, profile: str, *, root: Path | None = None, device: str | None = None, precision: str | None = None
    ) -> Pipeline:
        """Load a profile; by default on the GPU in bf16 when there is one, else on the CPU in fp32.

        Raises WeightsError when the profile is missing or corrupt, MachineError for a device that this machine has
        not, RequestError for an unknown precision.
        """
        chosen = usable_device(device) if device else default_device()
        precision = precision or default_precision(chosen)
        if precision not in PRECISIONS:
            raise RequestError(f"The precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        return cls(profile_files(profile, root or weights_root()), chosen, precision)

    def plan(self, request: SongRequest) -> Plan:
        """Understand a request without running a model.

        Raises LyricsError or RequestError with one sentence for what cannot be sung.
        """
        check_request(request)
        lyrics = parse_lyrics(request.lyrics)
        language = detect_language(request.lyrics) if request.language == "auto" else request.language
        tags, hints = clean_tags(language_tags(language, request.genre_tags), self.tags)
        key, warnings = self._checkpoint(request, language)
        count = min(request.num_segments or len(lyrics.sections), len(lyrics.sections))
        drawing = self.drawing[key]
        if request.sampling.top_k == Sampling.top_k:  # the one setting that upstream leaves to the checkpoint
            request = replace(request, sampling=replace(request.sampling, top_k=drawing.top_k))
        notes = (*drawing.notes(1), *self.stage2_drawing.notes(2))
        return Plan(request, lyrics.sections, count, tags, key, (*lyrics.warnings, *hints, *warnings, *notes))

    def generate(
        self,
        request: SongRequest,
        progress: Progress | None = None,
        earlier: SongTokens | None = None,
        redo_section: int | None = None,
    ) -> list[Song]:
        """Sing a request: one song per variation.

        With `earlier`, its sections are the first ones of the request's lyrics and are kept, all but
        `redo_section` (counted from 1). Raises the subclasses of YuEError that `plan` and the reference name.
        """
        progress = progress or Progress(None)
        takes, plan = self.takes(request, progress, earlier, redo_section)
        self.stage1[plan.stage1].write(takes, progress)
        return self.render(plan, takes, progress)

    def takes(
        self,
        request: SongRequest,
        progress: Progress,
        earlier: SongTokens | None = None,
        redo_section: int | None = None,
    ) -> tuple[list[Take], Plan]:
        """What stage 1 has to write for a request: one take per variation."""
        plan = self.plan(request)
        audio, truncated = kept_audio(plan, earlier, redo_section, self.vocabulary)
        reference, warnings = self._encode(request.reference, progress)
        prompt = build_prompt(self.tokenizer, self.vocabulary, plan.genre_tags, plan.sections, reference)
        plan = replace(plan, warnings=(*plan.warnings, *prompt.warnings, *warnings))
        takes = [
            Take(prompt, plan.request.sampling, request.seed, variation, list(audio), list(truncated))
            for variation in range(request.variations)
        ]
        takes[0].check(self.stage1[plan.stage1].lm.config.max_positions)
        return takes, plan

    def release(self) -> None:
        """Free the working memory that songs have left; the weights stay."""
        for ensemble in self.stage1.values():
            ensemble.release()

    def render(self, plan: Plan, takes: Sequence[Take], progress: Progress) -> list[Song]:
        """Turn complete takes into songs: stage 2 for all of them at once, then codec, vocoder and mastering."""
        labels = [section.label for section in plan.sections[: plan.count]]
        tokens = [song_tokens(take, labels, self.vocabulary) for take in takes]
        tracks = [track for one in tokens for track in (one.vocals, one.instrumental)]
        drawing = None
        if not self.stage2_drawing.greedy:
            songs = [(take.seed, take.variation, track) for take in takes for track in (1, 2)]
            drawing = Drawing(self.stage2_drawing, songs)
        grids = refine(self.stage2, self.vocabulary, tracks, progress, drawing=drawing)
        codes = [grid.astype(np.int16) for grid in grids]
        return [
            self._finish(plan, take, tokens[i], codes[2 * i], codes[2 * i + 1], progress)
            for i, take in enumerate(takes)
        ]

    def _finish(
        self, plan: Plan, take: Take, tokens: SongTokens, vocals: Codes, instrumental: Codes, progress: Progress
    ) -> Song:
        """Codes [K, T] of both tracks to one mastered song."""
        with progress.stage("audio", 2, "track"):
            tracks = []
            for name, codes in (("vocals", vocals), ("instrumental", instrumental)):
                low = self.codec.decode(codes, progress.check)
                high = self.vocoders[name](self.codec.embed(codes), progress.check)
                tracks.append(Track(low, high))
                progress.advance()
            audio = master(*tracks)
            if tokens.spans[-1].truncated:
                audio = {name: fade_out(waveform) for name, waveform in audio.items()}
            if plan.request.limiter:
                audio = {name: limit(waveform) for name, waveform in audio.items()}
        return Song(
            tokens=tokens,
            audio={name: waveform.numpy() for name, waveform in audio.items()},
            seed=take.seed,
            variation=take.variation,
            warnings=(*plan.warnings, *take.warnings),
            seconds=dict(progress.seconds),
        )

    def _checkpoint(self, request: SongRequest, language: str) -> tuple[tuple[str, str], tuple[str, ...]]:
        """The stage-1 checkpoint for a request, and warnings.

        Raises RequestError when the loaded profile has none for it.
        """
        mode = "icl" if request.reference else "cot"
        wanted = checkpoint_language(language)
        if (wanted, mode) in self.stage1:
            return (wanted, mode), ()
        available = [key for key in self.stage1 if key[1] == mode]
        if not available:
            raise RequestError(
                f"The profile {self.files.name} has no checkpoint for reference audio; "
                f"load the profile {'en' if wanted == 'en' else wanted} with YUE_PROFILE, or leave the reference out."
            )
        if request.language != "auto":
            raise RequestError(
                f"The profile {self.files.name} has no checkpoint for the language {language!r}; "
                f"load the profile {wanted} or all with YUE_PROFILE."
            )
        return available[0], (f"The lyrics look like {language!r}, sung by the {available[0][0]} checkpoint.",)

    def _encode(self, reference: Reference | None, progress: Progress) -> tuple[list[Codes], list[str]]:
        """Codebook-0 codes [T] of the reference's window: one track, or vocals and instrumental; and warnings."""
        if reference is None:
            return [], []
        paths = [reference.mix] if reference.mix else [reference.vocals, reference.instrumental]
        with progress.stage("reference", len(paths), "track"):
            tracks = []
            for path in paths:
                assert path is not None, "check_request saw to it"
                clip = read_clip(path, reference.start, reference.end, CODEC_RATE)
                tracks.append(self.codec.encode(clip)[0])
                progress.advance()
        shortest = min(map(len, tracks))
        if any(len(track) > shortest for track in tracks):
            warning = f"The reference tracks differ in length: only their first {shortest / 50:.1f} seconds are used."
            return [track[:shortest] for track in tracks], [warning]
        return tracks, []


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
