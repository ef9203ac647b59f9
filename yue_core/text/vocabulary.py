"""The id layout of a checkpoint family: text pieces, control tokens, codebooks (facts: YuE's tokenizer, v0.2)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one checkpoint family; the published models use `YUE`, `tiny` declares its own in a file."""

    start_of_audio: int  # <SOA>
    end_of_audio: int  # <EOA>
    stage_1: int  # <stage_1>
    stage_2: int  # <stage_2>
    xcodec: int  # <xcodec>, the codec's marker after <SOA>
    codebook_start: int  # id of code 0 of codebook 0
    codebook_size: int
    num_codebooks: int  # codebooks that stage 2 writes, codebook 0 included
    stage1_size: int  # rows of stage 1's embedding
    stage2_size: int  # rows of stage 2's embedding

    def codebook(self, k: int) -> range:
        """Ids of codebook `k`."""
        start = self.codebook_start + k * self.codebook_size
        return range(start, start + self.codebook_size)

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read a layout written by `write`."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the layout as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


YUE = Vocabulary(
    start_of_audio=32001,
    end_of_audio=32002,
    stage_1=32013,
    stage_2=32017,
    xcodec=32016,
    codebook_start=45334,
    codebook_size=1024,
    num_codebooks=8,
    stage1_size=83968,
    stage2_size=83840,
)
