"""scripts/generate: lyrics and tags in, audio files out."""

from __future__ import annotations

import argparse
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from yue_core.errors import RequestError, YuEError
from yue_core.inputs import DEMO_NOTE, DEMO_PROFILE, resolve_seed
from yue_core.song import (
    FORMATS,
    FRAMES_PER_SECOND,
    LANGUAGES,
    OUTPUTS,
    SAMPLE_RATE,
    Reference,
    Sampling,
    Song,
    SongRequest,
    Waveform,
)

USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        run(arguments)
    except YuEError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return OUR_ERROR
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Sampling()
    it = argparse.ArgumentParser(prog="scripts/generate", description=__doc__)
    it.add_argument("--lyrics", required=True, metavar="FILE", help="lyrics in labelled sections; - reads stdin")
    it.add_argument("--tags", required=True, help="genre, instrument, mood, gender and timbre, e.g. 'pop piano calm'")
    it.add_argument("--out", type=Path, default=Path("song.mp3"), metavar="FILE", help="default: song.mp3")
    it.add_argument("--format", choices=FORMATS, help="default: the suffix of --out")
    it.add_argument("--output", choices=OUTPUTS, default="song", help="what to write; stems are three files")
    it.add_argument("--variations", type=int, default=1, metavar="N", help="takes of the same request, N files")
    it.add_argument("--segments", type=int, metavar="N", help="sing the first N sections; default: all")
    it.add_argument("--seed", type=int, help="default: a random one, shown at the end")
    it.add_argument("--language", choices=LANGUAGES, default="auto")
    it.add_argument("--profile", default=DEMO_PROFILE, help="which weights: tiny (demo), en, zh, jp-kr, ...")
    it.add_argument("--device", help="cpu, cuda or mps; default: the best one present")
    it.add_argument("--precision", help="fp32, bf16, fp16 or int8; default: what suits the device")
    it.add_argument("--parts", action="store_true", help="write finished parts as WAV while later ones are sung")
    it.add_argument("--no-limiter", action="store_true", help="leave peaks above -1 dBTP as they are")

    reference = it.add_argument_group("reference clip")
    reference.add_argument("--reference", type=Path, metavar="CLIP", help="continue the style of this song")
    reference.add_argument("--reference-vocals", type=Path, metavar="CLIP", help="or of its vocals ...")
    reference.add_argument("--reference-instrumental", type=Path, metavar="CLIP", help="... and instrumental")
    reference.add_argument("--reference-start", type=float, default=Reference().start, metavar="SECONDS")
    reference.add_argument("--reference-end", type=float, default=Reference().end, metavar="SECONDS")

    sampling = it.add_argument_group("sampling")
    sampling.add_argument("--max-new-tokens", type=int, default=default.max_new_tokens, help="per section; 100 = 1 s")
    sampling.add_argument("--temperature", type=float, default=default.temperature)
    sampling.add_argument("--top-p", type=float, default=default.top_p)
    sampling.add_argument("--top-k", type=int, default=default.top_k)
    sampling.add_argument("--guidance-scale", type=float, help="default: 1.5, then 1.2 from the second section on")
    sampling.add_argument("--repetition-penalty", type=float, default=default.repetition_penalty)
    return it


def run(arguments: argparse.Namespace) -> None:
    """Make the songs, write the files, print the table."""
    request = request_of(arguments)
    target = writable_target(arguments.out)

    from yue_core import delivery  # slow: brings torch
    from yue_core.pipeline import Pipeline
    from yue_core.progress import Progress

    if arguments.profile == DEMO_PROFILE:
        print(DEMO_NOTE, file=sys.stderr)
    pipeline = Pipeline.load(arguments.profile, device=arguments.device, precision=arguments.precision)
    hand_out = part_writer(target, request, arguments.profile) if arguments.parts else None
    songs = pipeline.generate(request, Progress(sys.stderr), hand_out=hand_out)
    for song in songs:
        files, warnings = delivery.write_files(
            song, request, arguments.profile, target.parent, file_names(target, song, request)
        )
        for warning in (*song.warnings, *warnings):
            print(f"warning: {warning}", file=sys.stderr)
        print(table(song, files))


def part_writer(target: Path, request: SongRequest, profile: str) -> Callable[[float, Waveform], None]:
    """Writes the parts of a song that is not finished beside `target`: song.part1.wav, song.part2.wav ..."""
    from yue_core.audio.files import write_audio
    from yue_core.delivery import tags_of

    numbers = itertools.count(1)

    def write(start: float, part: Waveform) -> None:
        path = target.with_name(f"{target.stem}.part{next(numbers)}.wav")
        write_audio(path, part, SAMPLE_RATE, tags_of(request, profile))
        print(f"part: {path}, from {clock(start)}", file=sys.stderr)

    return write


def request_of(arguments: argparse.Namespace) -> SongRequest:
    """The request that the command line describes; raises RequestError."""
    output_format = arguments.format or arguments.out.suffix.removeprefix(".").lower()
    if output_format not in FORMATS:
        raise RequestError(
            f"{arguments.out} has no known audio suffix; name it {' or '.join(FORMATS)}, or give --format."
        )
    clips = (arguments.reference, arguments.reference_vocals, arguments.reference_instrumental)
    return SongRequest(
        genre_tags=arguments.tags,
        lyrics=read_lyrics(arguments.lyrics),
        seed=resolve_seed(arguments.seed),
        num_segments=arguments.segments,
        reference=Reference(*clips, arguments.reference_start, arguments.reference_end) if any(clips) else None,
        language=arguments.language,
        sampling=Sampling(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            top_k=arguments.top_k,
            guidance_scale=arguments.guidance_scale,
            repetition_penalty=arguments.repetition_penalty,
        ),
        output=arguments.output,
        output_format=output_format,
        variations=arguments.variations,
        limiter=not arguments.no_limiter,
    )


def read_lyrics(name: str) -> str:
    """The text of a lyrics file, or of stdin for "-"; raises RequestError."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"The lyrics file {name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"The lyrics file {name} is not UTF-8 text; save it as UTF-8.") from error


def writable_target(out: Path) -> Path:
    """`out` as an absolute path, once it is sure that a file can be written there; raises RequestError."""
    out = out.expanduser().absolute()
    if out.is_dir():
        raise RequestError(f"{out} is a folder; give --out a file name.")
    probe = out.with_name(f".{out.name}.part")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error.strerror}; choose another --out.") from error
    return out


def file_names(target: Path, song: Song, request: SongRequest) -> dict[str, str]:
    """Track -> file name without suffix: a number for each of several takes, the track's name for stems."""
    known = target.suffix.removeprefix(".").lower() in FORMATS
    stem = (target.stem if known else target.name) + (f"-{song.variation + 1}" if request.variations > 1 else "")
    names = {track: f"{stem}.{track}" for track in OUTPUTS}
    return names | {"song" if request.output == "stems" else request.output: stem}


def table(song: Song, files: Sequence[Path]) -> str:
    """What came out: sections, seed, time per stage, real-time factor, files."""
    total = sum(song.seconds.values())
    rows = [("section", "start", "end", "")]
    for span in song.tokens.spans:
        cut = "truncated" if span.truncated else ""
        rows.append((span.label, clock(span.start / FRAMES_PER_SECOND), clock(span.end / FRAMES_PER_SECOND), cut))
    rows += [(name, f"{seconds:.1f} s", "", "") for name, seconds in song.seconds.items()]
    rows.append(("first audio", f"{song.first_audio:.1f} s", "", ""))
    rows.append(("seed", str(song.seed), "", ""))
    rows.append(("real-time factor", f"{total / song.duration:.2f}", f"{total:.1f} s for {song.duration:.1f} s", ""))
    rows += [("file", str(file), "", "") for file in files]
    return "\n".join(f"{a:<18}{b:<10}{c:<10}{d}".rstrip() for a, b, c, d in rows)


def clock(seconds: float) -> str:
    """Minutes and seconds, as players show them."""
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"


if __name__ == "__main__":
    sys.exit(main())
