"""The demo profile's own SentencePiece model, from its own words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece

from training.score import LABELS, draw_song
from training.words import TAGS
from yue_core.text.lyrics import join_sections
from yue_core.text.vocabulary import Vocabulary

PIECES = 768  # text ids, 256 of them bytes
SONGS = 1500
FIRST_SEED = 50_000_000
KNOWN = 300  # lines with every tag and label: enough that each of their words is a piece

VOCABULARY = Vocabulary(
    start_of_audio=768, end_of_audio=769, stage_1=770, stage_2=771, xcodec=772,
    codebook_start=784, codebook_size=1024, num_codebooks=8, stage1_size=784 + 1024, stage2_size=784 + 8 * 1024,
)  # fmt: skip


def make_tokenizer(path: Path) -> None:
    """Train byte-pair pieces on prompts of random songs, and on single letters so that any word has pieces.

    A word of a tag is one piece, and so is a label, so that a model knows them from what is sung.
    """
    lines = []
    for seed in range(FIRST_SEED, FIRST_SEED + SONGS):
        song = draw_song(seed)
        lyrics = join_sections([part.section for part in song.parts])
        lines += [
            "Generate music from the given lyrics segment by segment.",
            f"[Genre] {song.tags}",
            *lyrics.split("\n"),
        ]
        lines += ["[start_of_segment]", "[end_of_segment]", "[start_of_reference]", "[end_of_reference]"]
    lines += KNOWN * [" ".join(word for values in TAGS.values() for words in values.values() for word in words)]
    lines += KNOWN * [f"[{label}]" for label in LABELS]
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'!?-0123456789")
    lines += ["".join(rng.choice(letters, 12)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line), model_writer=model, vocab_size=PIECES,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, pad_id=-1, num_threads=1, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
