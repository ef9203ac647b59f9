"""The song's whole way, from a request to finished audio; all models are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yue_core.audio.codec import CODEC_RATE, Codec
from yue_core.audio.files import read_clip
from yue_core.audio.mastering import Track, fade_out, limit, master
from yue_core.audio.vocoder import Vocoder
from yue_core.device import PRECISIONS, default_device, default_precision, usable_device
from yue_core.ensemble import Ensemble
from yue_core.errors import RequestError
from yue_core.lm.checkpoint import STAGE1, STAGE2
from yue_core.lm.generation import GenerationDefaults, read_generation_config
from yue_core.lm.load import load_lm
from yue_core.plan import Plan, check_request, kept_audio
from yue_core.preview import HandOut, Preview
from yue_core.progress import Progress
from yue_core.song import Codes, Reference, Sampling, Song, SongRequest, SongTokens, Waveform
from yue_core.stage1 import Take, song_tokens
from yue_core.stage2 import Drawing, Grid, Window, refine
from yue_core.text.language import checkpoint_language, detect_language, language_tags
from yue_core.text.lyrics import parse_lyrics
from yue_core.text.prompt import build_prompt
from yue_core.text.tags import clean_tags, known_tags
from yue_core.text.tokenizer import Tokenizer
from yue_core.text.vocabulary import YUE
from yue_core.weights.manifest import ProfileFiles, profile_files, weights_root

SMALL_WIDTH, SMALL_THREADS = 256, 2  # hidden size up to which a product is too short for more threads


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
            torch.set_num_threads(min(SMALL_THREADS, torch.get_num_threads()))
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
        else:
            drawing = replace(drawing, top_k=GenerationDefaults.top_k)
        notes = (*drawing.notes(1), *self.stage2_drawing.notes(2))
        return Plan(request, lyrics.sections, count, tags, key, (*lyrics.warnings, *hints, *warnings, *notes))

    def generate(
        self,
        request: SongRequest,
        progress: Progress | None = None,
        earlier: SongTokens | None = None,
        redo_section: int | None = None,
        hand_out: HandOut | None = None,
    ) -> list[Song]:
        """Sing a request: one song per variation.

        With `earlier`, its sections are the first ones of the request's lyrics and are kept, all but
        `redo_section` (counted from 1). `hand_out` gets parts of the first take while later sections are written:
        where a part begins, in seconds, and its samples at SAMPLE_RATE.

        Raises the subclasses of YuEError that `plan` and the reference name.
        """
        progress = progress or Progress(None)
        takes, plan = self.takes(request, progress, earlier, redo_section)

        def part(tokens: SongTokens, windows: dict[Window, Grid], progress: Progress) -> Waveform:
            codes = self._refine(takes[:1], [tokens], progress, windows)
            return self._sound(codes, progress)["song"].numpy()

        with Preview(part, hand_out, progress) as preview:
            self.stage1[plan.stage1].write(takes, progress, lambda: preview.add(self._written(plan, takes[0])))
        return self.render(plan, takes, progress, preview.windows)

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

    @torch.inference_mode()
    def render(
        self, plan: Plan, takes: Sequence[Take], progress: Progress, windows: dict[Window, Grid] | None = None
    ) -> list[Song]:
        """Turn complete takes into songs: stage 2 for all of them at once, then codec, vocoder and mastering.

        `windows` are those that stage 2 has done before.
        """
        tokens = [self._written(plan, take) for take in takes]
        codes = self._refine(takes, tokens, progress, {} if windows is None else windows)
        songs = []
        for i, take in enumerate(takes):
            audio = self._master(plan, tokens[i], self._sound(codes[2 * i : 2 * i + 2], progress))
            first_audio = progress.heard()
            warnings = (*plan.warnings, *take.warnings)
            songs.append(
                Song(tokens[i], audio, take.seed, take.variation, warnings, dict(progress.seconds), first_audio)
            )
        return songs

    def _written(self, plan: Plan, take: Take) -> SongTokens:
        """What a take has of its song so far."""
        return song_tokens(take, [section.label for section in plan.sections[: plan.count]], self.vocabulary)

    def _refine(
        self, takes: Sequence[Take], tokens: Sequence[SongTokens], progress: Progress, windows: dict[Window, Grid]
    ) -> list[Codes]:
        """Stage 2 for all takes at once: codes [K, T] of vocals and instrumental, take by take."""
        drawing = None
        if not self.stage2_drawing.greedy:
            songs = [(take.seed, take.variation, track) for take in takes for track in (1, 2)]
            drawing = Drawing(self.stage2_drawing, songs)
        tracks = [track for one in tokens for track in (one.vocals, one.instrumental)]
        grids = refine(self.stage2, self.vocabulary, tracks, progress, drawing=drawing, finished=windows)
        return [grid.astype(np.int16) for grid in grids]

    def _sound(self, codes: Sequence[Codes], progress: Progress) -> dict[str, Tensor]:
        """Codes [K, T] of vocals and instrumental to the song and its stems [S] at SAMPLE_RATE."""
        with progress.stage("audio", len(codes), "track"):
            tracks = []
            for name, track in zip(("vocals", "instrumental"), codes, strict=True):
                low = self.codec.decode(track, progress.check)
                high = self.vocoders[name](self.codec.embed(track), progress.check)
                tracks.append(Track(low, high))
                progress.advance()
            return master(*tracks)

    def _master(self, plan: Plan, tokens: SongTokens, audio: dict[str, Tensor]) -> dict[str, Waveform]:
        """The last touch on a whole song: a fade where it was cut off, and the limiter."""
        if tokens.spans[-1].truncated:
            audio = {name: fade_out(waveform) for name, waveform in audio.items()}
        if plan.request.limiter:
            audio = {name: limit(waveform) for name, waveform in audio.items()}
        return {name: waveform.numpy() for name, waveform in audio.items()}

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
