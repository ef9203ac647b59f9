"""From finished songs to one file in the caller's hands: nothing made is lost, nothing old stays."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from yue_core.audio.files import check_audio, write_audio
from yue_core.audio.metadata import SongTags
from yue_core.earlier import go_on, pack, read_song
from yue_core.errors import AudioFileError, MachineError, RequestError, YuEError
from yue_core.pipeline import Pipeline
from yue_core.slots import concurrency, current_progress
from yue_core.song import FRAMES_PER_SECOND, OUTPUTS, SAMPLE_RATE, TOKENS_PER_FRAME, Song, SongRequest
from yue_core.text.lyrics import parse_lyrics

FOLDER = "yue-{}-"  # process id
COG_FOLDERS = Path("/tmp/coglet/predictions")  # where Cog 0.23 leaves empty folders for every prediction it serves
COG_FOLDER_SECONDS = 60.0  # age from which an empty one is no running prediction's


class Desk:
    """Serves predictions, each in a folder of its own that a later prediction removes.

    Cog reads a returned file after `predict` is over. With one slot it has done so before the next prediction
    begins; with several, twice as many finished folders are kept, since another slot's upload may still run.
    What is finished is what lies on the disk and does not run, so that no cancellation hides a folder.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        remove_orphans()
        self.pipeline = pipeline
        self.root = Path(tempfile.mkdtemp(prefix=FOLDER.format(os.getpid())))
        self._keep = 0 if concurrency() == 1 else 2 * concurrency()
        self._running: set[Path] = set()
        self._lock = threading.Lock()
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)

    def serve(
        self,
        request: SongRequest,
        song: Path | None,
        redo_section: int | None,
        record_metric: Callable[[str, Any], None],
    ) -> Path:
        """Make a song, or go on from the one in the file `song`; logs and metrics tell about it.

        Raises subclasses of YuEError for what the user can put right.
        """
        folder, progress = self.open(), current_progress()
        warnings: list[str] = []
        try:
            earlier = read_song(song) if song else None
            if earlier:
                request, warnings = go_on(request, earlier, redo_section)
            elif redo_section is not None:
                raise RequestError("redo_section needs a song: give the file of an earlier one.")
            songs = self.pipeline.generate(request, progress, earlier.tokens if earlier else None, redo_section)
            profile = self.pipeline.files.name
            file, worries = deliver(songs, request, profile, folder)
            warnings = [*warnings, *songs[0].warnings, *worries]
            for name, value in metrics(songs, file, warnings).items():
                record_metric(name, value)
            report(songs, file, profile, warnings)
            return file
        finally:
            with self._lock:
                self._running.discard(folder)

    def open(self) -> Path:
        """A new empty folder; removes old ones."""
        remove_cogs_folders()
        try:
            with self._lock:
                if not self._keep:  # one slot: the last prediction is over, even if a cancellation struck its very end
                    self._running.clear()
                over = set(self.root.iterdir()) - self._running
                newest_first = sorted(over, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
                for folder in newest_first[self._keep :]:
                    shutil.rmtree(folder, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(dir=self.root))
                self._running.add(folder)
            return folder
        except OSError as error:
            raise MachineError("The server's disk is full or cannot be written; free some space.") from error


def remove_orphans() -> None:
    """Remove what processes that are gone have left behind; a folder with this process's id is an older one's."""
    for folder in Path(tempfile.gettempdir()).glob(FOLDER.format("*") + "*"):
        match = re.fullmatch(FOLDER.format(r"(\d+)") + r"\w+", folder.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(folder, ignore_errors=True)


def remove_cogs_folders() -> None:
    """Remove the empty folders that Cog never removes; whatever holds a file stays."""
    folders = [folder for folder, _, _ in os.walk(COG_FOLDERS, topdown=False)][:-1]  # the last one holds them all
    with suppress(OSError):  # another server was quicker
        for folder in [it for it in folders if time.time() - os.stat(it).st_mtime > COG_FOLDER_SECONDS]:
            with suppress(OSError):  # not empty
                os.rmdir(folder)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # alive, and another user's
    return True


def deliver(songs: Sequence[Song], request: SongRequest, profile: str, folder: Path) -> tuple[Path, list[str]]:
    """One checked file with all songs, named by seed and content; and warnings.

    Raises MachineError, which names no path of the server, when not even WAV can be written.
    """
    digest = hashlib.sha256(b"".join(song.tokens.vocals.tobytes() for song in songs)).hexdigest()[:6]
    files: list[Path] = []
    warnings: list[str] = []
    try:
        for song in songs:
            take = f"-{song.variation + 1}" if len(songs) > 1 else ""
            names = {track: f"{track}-{song.seed}-{digest}{take}" for track in OUTPUTS}
            written, worries = write_files(song, request, profile, folder, names)
            files += written
            warnings += worries
        if len(files) == 1:
            return files[0], warnings
        archive = folder / f"song-{songs[0].seed}-{digest}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
            for file in files:
                zipped.write(file, file.name)
                file.unlink()
    except (AudioFileError, OSError) as error:
        raise MachineError("The song could not be written: the server's disk is full; free some space.") from error
    return archive, warnings


def write_files(
    song: Song, request: SongRequest, profile: str, folder: Path, names: Mapping[str, str]
) -> tuple[list[Path], list[str]]:
    """Write the tracks that a request asks for, each checked, under `names` (without suffix); and warnings.

    Raises AudioFileError when not even WAV can be written.
    """
    tracks = ("song", "vocals", "instrumental") if request.output == "stems" else (request.output,)
    tags = replace(tags_of(request, profile), payload=pack(song, request, profile))
    files, warnings = [], []
    for track in tracks:
        path = folder / f"{names[track]}.{request.output_format}"
        try:
            _write_checked(path, song, track, tags)
        except YuEError:
            if path.suffix == ".wav":
                raise
            warnings.append(f"Encoding as {path.suffix.removeprefix('.')} failed; the song is a WAV file instead.")
            path = path.with_suffix(".wav")
            _write_checked(path, song, track, tags)
        files.append(path)
    return files, warnings


def _write_checked(path: Path, song: Song, track: str, tags: SongTags) -> None:
    write_audio(path, song.audio[track], SAMPLE_RATE, tags)
    check_audio(path, len(song.audio[track]) / SAMPLE_RATE)


def tags_of(request: SongRequest, profile: str) -> SongTags:
    """What a file says about the song in it."""
    return SongTags(title_of(request.lyrics), request.genre_tags, request.seed, f"YuE v1, profile {profile}")


def title_of(lyrics: str) -> str:
    """The first sung line, or the first label of an instrumental."""
    sections = parse_lyrics(lyrics).sections
    lines = [line for section in sections for line in section.text.splitlines() if line.strip()]
    return lines[0].strip() if lines else sections[0].label


def metrics(songs: Sequence[Song], file: Path, warnings: Sequence[str]) -> dict[str, Any]:
    """What a prediction tells about itself; names that Replicate bills by are spelt its way (facts: Cog, 6)."""
    first = songs[0]
    seconds = sum(song.duration for song in songs)
    spent = songs[-1].seconds
    return {
        "seed": first.seed,
        "audio_output_count": len(songs),
        "audio_output_duration_seconds": round(seconds, 3),
        "token_output_count": sum(TOKENS_PER_FRAME * len(song.tokens.vocals) for song in songs),
        "sections": [timeline(song) for song in songs] if len(songs) > 1 else timeline(first),
        "timing": {name.replace(" ", "_"): round(value, 3) for name, value in spent.items()},
        "first_audio_seconds": round(first.first_audio, 3),
        "real_time_factor": round(sum(spent.values()) / seconds, 3),
        "output_file": file.name,
        "warnings": list(warnings),
    }


def timeline(song: Song) -> list[dict[str, Any]]:
    """Sections with their times in seconds."""
    return [
        {
            "label": span.label,
            "start": span.start / FRAMES_PER_SECOND,
            "end": span.end / FRAMES_PER_SECOND,
            "truncated": span.truncated,
        }
        for span in song.tokens.spans
    ]


def report(songs: Sequence[Song], file: Path, profile: str, warnings: Sequence[str]) -> None:
    """The log's last lines: warnings, seconds per stage, what came out."""
    for warning in warnings:
        log("warning", text=warning)
    for name, seconds in songs[-1].seconds.items():
        log("stage", name=name, seconds=round(seconds, 2))
    duration = round(sum(song.duration for song in songs), 2)
    log("song", file=file.name, seed=songs[0].seed, seconds=duration, profile=profile)


def log(event: str, **fields: Any) -> None:
    """One line on stdout: words, or JSON where LOG_FORMAT=json."""
    if os.environ.get("LOG_FORMAT") == "json":
        print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)
    else:
        print(f"{event}: " + ", ".join(f"{key} {value}" for key, value in fields.items()), flush=True)
