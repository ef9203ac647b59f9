"""Each parity check: what a folder of golden arrays holds of one stage, against what the product gives.

Every file is optional, and so is each array within: a folder may hold a part of the recording, or another
recording of the same formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder
from yue_core.errors import RequestError
from yue_core.lm.layout import LMWeights
from yue_core.parity import audio, compare, tokens, upstream
from yue_core.parity.compare import Array, Outcome
from yue_core.parity.models import rule_codec, rule_lm, rule_vocoder
from yue_core.song import Sampling
from yue_core.stage1 import FIRST_GUIDANCE, LATER_GUIDANCE
from yue_core.text.tokenizer import Tokenizer


class Golden:
    """A folder of golden arrays, and the models by rule that belong to it."""

    def __init__(
        self, folder: Path, tokenizer: Path | None, device: torch.device, dtype: torch.dtype, int8: bool = False
    ) -> None:
        if not any(folder.glob("*.npz")):
            raise RequestError(f"{folder} holds no golden arrays; name the folder that holds them.")
        self.folder, self.device, self.dtype, self.int8 = folder, device, dtype, int8
        self.tokenizer = Tokenizer(tokenizer) if tokenizer else None
        self._codec: tuple[int, Codec] | None = None

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def arrays(self, name: str) -> dict[str, Array]:
        return dict(np.load(self.folder / f"{name}.npz"))

    def stage1(self, salt: int) -> LMWeights:
        """Stage 1 by rule, which may draw what upstream lets it draw."""
        return self._lm("stage1_keys", salt, upstream.STAGE1_IDS, normaliser=True)

    def stage2(self, salt: int) -> LMWeights:
        """Stage 2 by rule, which may draw what upstream lets it draw."""
        return self._lm("stage2_keys", salt, upstream.STAGE2_IDS, normaliser=False)

    def _lm(self, keys: str, salt: int, ids: Sequence[int], normaliser: bool) -> LMWeights:
        return rule_lm(
            self.json(keys), salt, ids, normaliser=normaliser, device=self.device, dtype=self.dtype, int8=self.int8
        )

    def codec(self, salt: int) -> Codec:
        """The codec by rule; the last one is kept, since most recordings share it."""
        if self._codec is None or self._codec[0] != salt:
            self._codec = None  # one is 700 MB
            self._codec = salt, rule_codec(self.json("xcodec_keys"), salt, self.device)
        return self._codec[1]

    def vocoders(self, salts: tuple[int, int]) -> tuple[Vocoder, Vocoder]:
        """Vocal and instrumental vocoder."""
        keys = self.json("vocos_keys")
        return rule_vocoder(keys, salts[0], self.device), rule_vocoder(keys, salts[1], self.device)


def _prompts(data: Golden) -> Iterator[Outcome]:
    """Stage-1 inputs of every recorded case, and the tracks that upstream made of the answers."""
    kinds: dict[str, tuple[list[Array], list[Array]]] = {}
    tracks: tuple[list[Array], list[Array]] = ([], [])
    for case in data.json("stage1_prompts")["cases"]:
        if not case["segments"]:
            continue  # upstream crashed
        reference = [np.array(codes, dtype=np.int64) for codes in case["reference_codes"]]
        got, want = kinds.setdefault(("CoT", "single track", "dual track")[len(reference)], ([], []))
        if data.tokenizer is not None:
            options = dict(zip(case["options"], case["options"][1:], strict=False))
            start, end = float(options.get("--prompt_start_time", 0)), float(options.get("--prompt_end_time", 30))
            lyrics, limit = case["lyrics"], case["max_context"]
            answers = case["generated"][: len(case["segments"])]
            inputs, raw = tokens.prompt_ids(
                data.tokenizer, case["genre"], lyrics, answers, reference, start, end, limit
            )
            got += [*inputs, raw]
            want += [*(np.array(s["input_ids"]) for s in case["segments"]), np.array(case["raw_output"])]
        tracks[0].extend(upstream.split_sections(case["generated"]))
        tracks[1].extend([np.array(case["vocals"]), np.array(case["instrumentals"])])
    for kind, (got, want) in kinds.items():
        if data.tokenizer is None:
            yield Outcome(f"prompts, {kind}", None, "no tokenizer.model at hand")
        else:
            yield compare.equal(f"prompts, {kind}", got, want)
    yield compare.equal("tracks of stage 1's ids", *tracks)


def _stage1(data: Golden) -> Iterator[Outcome]:
    """Logits, scores and tokens of every recorded run."""
    info, arrays = data.json("stage1_generation"), data.arrays("stage1_generation")
    lm = data.stage1(info["salt"])
    for run in info["runs"]:
        name, penalty = run["name"], run["repetition_penalty"]
        parts = [f"{name}/seg{i + 1}/" for i in range(len(run["segments"]))]
        if f"{parts[0]}new_ids" not in arrays:
            continue
        inputs = [arrays[part + "input_ids"] for part in parts]
        answers = [arrays[part + "new_ids"] for part in parts]
        prompts = _between(inputs, answers)
        sampling = Sampling(max_new_tokens=run["max_new_tokens"], repetition_penalty=penalty)
        for i, part in enumerate(parts):
            if part + "cond" in arrays:
                yield from _logits(
                    f"stage 1 {name}, section {i + 1}",
                    lm,
                    arrays,
                    part,
                    LATER_GUIDANCE if i else FIRST_GUIDANCE,
                    penalty,
                )
        if not run["do_sample"]:
            ids = tokens.stage1_tokens(lm, prompts, sampling)
            margins = [arrays[part + "margin"] for part in parts]
            yield compare.greedy_tokens(f"stage 1 {name}, tokens", ids, answers, margins)
            continue
        draw = upstream.multinomial_draw(run["seed"], lm.drawable, lm.config.vocab_size)
        replay = tokens.stage1_replay(lm, prompts, answers, sampling, draw)
        drawn = [section["drawn"] for section in replay]
        yield _if_same_numbers(compare.equal(f"stage 1 {name}, tokens of upstream's draw", drawn, answers))
        want = [{key: arrays[part + key] for key in ("kept_ids", "kept_scores")} for part in parts]
        yield compare.kept_steps(f"stage 1 {name}, after top-k and top-p", replay, want)


def _between(inputs: Sequence[Array], answers: Sequence[Array]) -> list[Array]:
    """The first section's whole input, then what stands between the audio of one section and the next."""
    ends = [len(ids) + len(upstream.closed(answer)) for ids, answer in zip(inputs, answers, strict=True)]
    return [inputs[0], *(ids[end:] for ids, end in zip(inputs[1:], ends, strict=False))]


def _if_same_numbers(outcome: Outcome) -> Outcome:
    """Sampled tokens cannot be judged where torch's generator gives other numbers than the recording's."""
    return (
        outcome
        if outcome.passed
        else Outcome(outcome.name, None, f"{outcome.figures}; random numbers or rounding differ")
    )


def _close_scores(name: str, got: list[Array], want: list[Array]) -> Outcome:
    return compare.close(name, got, want, compare.SCORES)


def _logits(
    name: str, lm: LMWeights, arrays: dict[str, Array], part: str, guidance: float, penalty: float
) -> Iterator[Outcome]:
    """Both branches' logits and the processed scores of the recorded steps of one section."""
    steps = len(arrays[part + "cond"])
    ids = arrays[part + "new_ids"][:steps]
    got = tokens.stage1_logits(lm, arrays[part + "input_ids"], ids, guidance, penalty)
    columns = np.searchsorted(lm.drawable.cpu().numpy(), arrays["keep_ids"])
    pairs = [(got[key][:, columns], arrays[part + key]) for key in ("cond", "unc", "pre")]
    pairs += [(got[key], arrays[part + key]) for key in ("cond_logsumexp", "unc_logsumexp")]
    if part + "cond_all_step0" in arrays:
        pairs.append((got["cond_all"], arrays[part + "cond_all_step0"]))
        pairs.append((got["pre"][0], arrays[part + "pre_all_allowed_step0"]))
    yield _close_scores(f"{name}, logits and scores", [g for g, _ in pairs], [w for _, w in pairs])


def _stage2(data: Golden) -> Iterator[Outcome]:
    """Codes of every recorded length, all windows in one batch."""
    arrays = data.arrays("stage2")
    lengths = sorted(int(name.removeprefix("cb0_")) for name in arrays if name.startswith("cb0_"))
    lm = data.stage2(data.json("stage2")["salt"])
    codes = tokens.stage2_codes(lm, [arrays[f"cb0_{length}"] for length in lengths])
    for length, got in zip(lengths, codes, strict=True):
        margins = [arrays[f"margin_{length}"]]
        yield compare.window_codes(f"stage 2, {length} frames", [got], [arrays[f"raw_{length}"]], margins)
    repaired = [upstream.repair(arrays[f"raw_{length}"]) for length in lengths]
    yield compare.equal("stage 2, upstream's repair", repaired, [arrays[f"codes_{length}"] for length in lengths])


def _codec(data: Golden) -> Iterator[Outcome]:
    """Decoding, embeddings and encoding."""
    arrays, codec = data.arrays("codec"), data.codec(data.json("codec")["salt"])
    frames = sorted(int(name.removeprefix("wave_")) for name in arrays if name.startswith("wave_"))
    codes = [arrays[f"codes_{t}"] for t in frames]
    waves = [audio.codec_decode(codec, c) for c in codes]
    yield compare.close("codec, decoded waveforms", waves, [arrays[f"wave_{t}"] for t in frames], compare.WAVEFORM)
    known = [t for t in frames if f"embed_{t}" in arrays]
    embeddings = [audio.codec_embed(codec, arrays[f"codes_{t}"]) for t in known]
    yield compare.close("codec, embeddings", embeddings, [arrays[f"embed_{t}"] for t in known], compare.EMBEDDING)
    samples = sorted(int(name.removeprefix("audio_")) for name in arrays if name.startswith("audio_"))
    for books in (1, 8):
        got = [audio.codec_encode(codec, arrays[f"audio_{n}"], books) for n in samples]
        want = [arrays[f"codes_q{books}_{n}"] for n in samples]
        margins = [arrays[f"margin_q{books}_{n}"] for n in samples]
        yield compare.encoder_codes(f"codec, encoded to {books} codebooks", got, want, margins)


def _vocoder(data: Golden) -> Iterator[Outcome]:
    """Waveforms of both vocoders."""
    info, arrays, coded = data.json("vocoder"), data.arrays("vocoder"), data.arrays("codec")
    codec = data.codec(data.json("codec")["salt"])
    for track, vocoder in zip(("vocal", "inst"), data.vocoders((info["salt_vocal"], info["salt_inst"])), strict=True):
        names = [name for name in arrays if name.startswith(f"{track}_")]
        codes = [coded[name.replace(track, "codes")] for name in names]
        got = [audio.vocoder_waveform(vocoder, audio.codec_embed(codec, c)) for c in codes]
        yield compare.close(f"vocoder, {track} waveforms", got, [arrays[name] for name in names], compare.WAVEFORM)


def _mastering(data: Golden) -> Iterator[Outcome]:
    """Resampling, both filters and the splice."""
    arrays = data.arrays("postprocess")
    steps: dict[str, Callable[[str], Array]] = {
        "a_resampled": lambda case: audio.resample(arrays[f"{case}/a"], 16_000, 44_100),
        "a_low": lambda case: audio.low_band(arrays[f"{case}/a_resampled"]),
        "b_low": lambda case: audio.low_band(arrays[f"{case}/b"]),
        "b_high": lambda case: audio.high_band(arrays[f"{case}/b"]),
        "out": lambda case: audio.splice(arrays[f"{case}/a"], arrays[f"{case}/b"]),
    }
    for step, run in steps.items():
        cases = [name.removesuffix(f"/{step}") for name in arrays if name.endswith(f"/{step}")]
        inputs = [[arrays[f"{case}/{x}"] for x in "ab" if f"{case}/{x}" in arrays] for case in cases]
        bounds = [compare.WAVEFORM * max(1.0, *(float(np.abs(x).max()) for x in pair)) for pair in inputs]
        want = [arrays[f"{case}/{step}"] for case in cases]
        yield compare.close(f"mastering, {step}", [run(case) for case in cases], want, bounds)
    clips = [name.removesuffix("_in") for name in arrays if name.endswith("_in")]
    if clips:
        got = [audio.mono_16k(arrays[f"{clip}_in"], int(clip.split("/")[1])) for clip in clips]
        bounds = [compare.WAVEFORM * max(1.0, float(np.abs(arrays[f"{clip}_in"]).max())) for clip in clips]
        yield compare.close("reference clips to mono", got, [arrays[f"{clip}_out"] for clip in clips], bounds)


def _end_to_end(data: Golden) -> Iterator[Outcome]:
    """A whole song from stage 1's prompt on; later steps are given stage 1's recorded tokens."""
    info, arrays = data.json("e2e"), data.arrays("e2e")
    salts = info["salts"]
    inputs, answers = (
        [arrays[f"stage1_seg{i + 1}_{kind}"] for i in range(len(info["segments"]))] for kind in ("input_ids", "new_ids")
    )
    lm = data.stage1(salts["stage1"])
    prompts = _between(inputs, answers)
    sampling = Sampling(max_new_tokens=info["max_new_tokens"], repetition_penalty=info["repetition_penalty"])
    draw = upstream.multinomial_draw(info["seed"], lm.drawable, lm.config.vocab_size)
    ids = tokens.stage1_tokens(lm, prompts, sampling, draw)
    yield _if_same_numbers(compare.equal("end to end, stage 1 tokens of upstream's draw", ids, answers))
    tracks = [arrays["stage1_vocals"], arrays["stage1_instrumentals"]]
    yield compare.equal("end to end, tracks of stage 1's ids", upstream.split_sections(answers), tracks)
    lm = data.stage2(salts["stage2"])
    codes = [upstream.repair(raw) for raw in tokens.stage2_codes(lm, [track[0] for track in tracks])]
    want = [arrays["stage2_vocals"], arrays["stage2_instrumentals"]]
    yield compare.equal("end to end, stage 2 codes", codes, want)
    if "final_44k" not in arrays:
        return
    vocoders = data.vocoders((salts["vocos_vocal"], salts["vocos_inst"]))
    song = audio.song_waveforms(data.codec(salts["xcodec"]), vocoders, codes[0], codes[1], bool(info["rescale"]))
    bounds = [compare.FINAL if name == "final_44k" else compare.WAVEFORM for name in song]
    yield compare.close("end to end, waveforms", list(song.values()), [arrays[name] for name in song], bounds)


CHECKS: tuple[tuple[tuple[str, ...], Callable[[Golden], Iterator[Outcome]]], ...] = (
    (("stage1_prompts.json",), _prompts),
    (("stage1_generation.json", "stage1_generation.npz", "stage1_keys.json"), _stage1),
    (("stage2.json", "stage2.npz", "stage2_keys.json"), _stage2),
    (("codec.json", "codec.npz", "xcodec_keys.json"), _codec),
    (("vocoder.json", "vocoder.npz", "codec.json", "codec.npz", "vocos_keys.json", "xcodec_keys.json"), _vocoder),
    (("postprocess.npz",), _mastering),
    (
        ("e2e.json", "e2e.npz", "stage1_keys.json", "stage2_keys.json", "xcodec_keys.json", "vocos_keys.json"),
        _end_to_end,
    ),
)
