"""scripts/train_tiny: the whole demo profile from nothing, or from where the last run stopped."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from training import codec, stage1, stage2, vocoders
from training.evaluate import evaluate
from training.render import render
from training.score import draw_song
from training.songs import Corpus
from training.tokenizer import VOCABULARY, make_tokenizer
from training.words import TAGS
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED, SONGS = 1_000_000, 300  # of the audio models' corpus
CODES = "codes.pt"
CODED_SONGS = 1000  # that stage 2 learns from, the corpus among them: it knows some by heart
SEMANTIC_STEPS, DECODER_STEPS, VOCODER_STEPS = 900, 1900, 1200
WINDOWS, VECTORS = 40_000, 120_000  # that the codec's transform and codebooks are fitted to
WORKERS = 2  # of the costly parts on a CPU, one thread each: faster than one worker with more threads
SHARED = ("stage1", "stage2")
TAG_LIST = {  # names that upstream's list of tags has, and what our songs have for them
    "genre": "drums", "instrument": "instrument", "mood": "mode", "gender": "voice", "timbre": "timbre",
    "tempo": "sixteenth",
}  # fmt: skip
PARTS = ("text", "codec", "codes", "stage1", "stage2", "decoder", "vocals", "instrumental")


def corpus(rate: int) -> Corpus:
    """The songs that codec, vocoders and stage 2 learn from."""
    return Corpus.of(range(FIRST_SEED, FIRST_SEED + SONGS), rate)


def write_text(out: Path) -> None:
    """Tokenizer, id layout and tag list."""
    make_tokenizer(out / "tokenizer.model")
    VOCABULARY.write(out / "vocabulary.json")
    tags = {name: [word for words in TAGS[kind].values() for word in words] for name, kind in TAG_LIST.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(words)}" for name, words in tags.items())
    (out / "tags.json").write_text(f"{{\n{lines}\n}}\n")


def make_codec(work: Path, out: Path, device: str) -> None:
    """Semantic branch, transform and codebooks; the decoder is the plain inverse transform so far."""
    songs = corpus(codec.RATE)
    model = codec.new_codec().to(device)
    codec.train_semantic(model, songs, work, SEMANTIC_STEPS)
    model = model.cpu()
    frames = torch.cat([codec.frames(wave) for wave in songs.waves])
    states = torch.cat(songs.states)
    chosen = codec.drawn(states, VECTORS)
    codec.set_transform(model, frames[chosen[:WINDOWS]])
    vectors = torch.cat([codec.embeddings(model, wave) for wave in songs.waves])
    codec.set_codebooks(model, vectors[chosen], states[chosen])
    codec.save_codec(model, out / "xcodec")


def write_codes(work: Path, out: Path) -> None:
    """Codes [8, T] of the tracks of many songs, the corpus's first, by the codec of `out`."""
    model = codec.load_codec(out / "xcodec")
    songs = map(draw_song, range(FIRST_SEED, FIRST_SEED + CODED_SONGS))
    tracks = (torch.from_numpy(wave) for song in songs for wave in render(song, codec.RATE))
    torch.save([codec.codes(model, track).short() for track in tracks], work / CODES)


def song_codes(work: Path) -> list[Tensor]:
    """What `write_codes` wrote."""
    return [codes.long() for codes in torch.load(work / CODES)]


def run(part: str, work: Path, out: Path, device: str) -> None:
    """Train one part; parts are in order of what they need."""
    if part == "text":
        write_text(out)
    elif part == "codec":
        make_codec(work, out, device)
    elif part == "codes":
        write_codes(work, out)
    elif part == "stage1":
        stage1.train_stage1(work, out / "stage1", Tokenizer(out / "tokenizer.model"), device)
    elif part == "stage2":
        quantizers = codec.load_codec(out / "xcodec").quantizer.quantizers
        books = torch.stack([quantizer.codebook.embed for quantizer in quantizers])[..., : codec.ACOUSTIC].detach()
        stage2.train_stage2(song_codes(work), books, work, out / "stage2", device)
    elif part == "decoder":
        model = codec.load_codec(out / "xcodec").to(device)
        codec.train_decoder(model, corpus(codec.RATE), song_codes(work), work, DECODER_STEPS)
        codec.save_codec(model, out / "xcodec")
    else:
        model = codec.load_codec(out / "xcodec")
        vectors = [model.quantizer.decode(codes[:, None])[0].T for codes in song_codes(work)[: 2 * SONGS]]
        folder = out / f"vocoder-{part}"
        silence = model.quantizer.decode(torch.zeros(8, 1, 1, dtype=torch.long))[0, :, 0]
        vocoders.train_vocoder(part, corpus(vocoders.RATE), vectors, silence, work, folder, VOCODER_STEPS, device)


def run_shared(part: str, arguments: argparse.Namespace) -> None:
    """A costly part on the CPU: the same command in several processes that average their gradients."""
    meeting = arguments.work / f"{part}.meeting"
    meeting.unlink(missing_ok=True)
    own = [sys.executable, "-m", "training.train", "--work", arguments.work, "--out", arguments.out, "--only", part]
    environment = os.environ | {"YUE_TRAIN_MEETING": str(meeting.absolute()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*map(str, own), "--device", "cpu"], env=environment | {"YUE_TRAIN_RANK": str(number)})
        for number in range(WORKERS)
    ]
    ended = [process.wait() for process in processes]
    if any(ended):
        sys.exit(f"The training of {part} stopped; run the same command again to go on.")


def main() -> None:
    """Train all parts, or some; a whole profile in its place is measured at the end."""
    it = argparse.ArgumentParser(prog="scripts/train_tiny", description=__doc__)
    it.add_argument("--work", type=Path, default=ROOT / "build" / "train_tiny", help="checkpoints and logs")
    it.add_argument("--out", type=Path, default=TINY, help="the profile's folder")
    it.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    it.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = it.parse_args()
    for folder in (arguments.work, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    meeting = os.environ.get("YUE_TRAIN_MEETING")
    if meeting:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=int(os.environ["YUE_TRAIN_RANK"]), world_size=WORKERS
        )
    for part in arguments.only:
        print(f"{part} ...", file=sys.stderr)
        if part in SHARED and arguments.device == "cpu" and not meeting:
            run_shared(part, arguments)
        else:
            run(part, arguments.work, arguments.out, arguments.device)
    if arguments.only == PARTS and arguments.out == TINY:
        evaluate()


if __name__ == "__main__":
    main()
