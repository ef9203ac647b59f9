"""The Cog predictor: typed inputs -> SongRequest -> one file. Translation only; the work is in `yue_core`.

Cog reads this file twice: when it runs, and as text when it builds an image. Every text and number below is therefore
one plain literal (facts: Cog, 2.3). The names Predictor/BasePredictor/predict are what Replicate's tools and published
models use; Cog 0.23 accepts them and prefers Runner/BaseRunner/run.
"""

# ruff: noqa: B008, E501  (Input() defaults and long literals are how Cog wants it)

import os

from cog import BasePredictor, Input, Path

from yue_core.delivery import Desk
from yue_core.guard import Guard
from yue_core.inputs import DEMO_NOTE, DEMO_PROFILE, reference_of, resolve_seed, uploaded
from yue_core.machine import check_ready
from yue_core.pipeline import Pipeline
from yue_core.slots import async_when_concurrent
from yue_core.song import Sampling, SongRequest
from yue_core.weights.fetch import fetch
from yue_core.weights.manifest import weights_root

LONGEST_PLANNED = 60.0  # seconds of song that the memory has to be enough for
EXAMPLE_TAGS = "inspiring female uplifting pop airy vocal electronic bright vocal"
EXAMPLE_LYRICS = """[verse]
Streetlights hum along the quiet bay
Paper boats are drifting on the rain
Every window holds a little day
Every whistle is a leaving train

[chorus]
So leave a light on, I am coming home
Over the water, over the stone
Leave a light on, let the morning know
Wherever you are is the way I go
"""


class Predictor(BasePredictor):  # type: ignore[misc]
    """YuE: lyrics to song."""

    def setup(self) -> None:
        """Load every weight once; YUE_PROFILE names the checkpoints, YUE_PRECISION bf16 or int8, YUE_FETCH=1 fetches."""
        profile = os.environ.get("YUE_PROFILE", DEMO_PROFILE)
        if profile == DEMO_PROFILE:
            print(DEMO_NOTE)
        if os.environ.get("YUE_FETCH") == "1":
            fetch(profile, weights_root())
        precision = os.environ.get("YUE_PRECISION") or None
        check_ready(profile, None, LONGEST_PLANNED, precision)
        pipeline = Pipeline.load(profile, precision=precision)
        self.desk, self.guard = Desk(pipeline), Guard(pipeline)

    def healthcheck(self) -> bool:
        """False once the device no longer answers."""
        return self.guard.healthy()

    @async_when_concurrent
    def predict(
        self,
        genre_tags: str = Input(
            default=EXAMPLE_TAGS,
            description="Five kinds of tags make a stable style: genre, instrument, mood, gender and timbre of the voice, separated by spaces.",
        ),
        lyrics: str = Input(
            default=EXAMPLE_LYRICS,
            description="Lyrics in sections, each below its label: [verse], [chorus], [bridge], [outro] ... A label without lines is an instrumental passage. Keep a section to about 30 seconds of singing.",
        ),
        num_segments: int | None = Input(
            default=None,
            description="How many sections to sing, from the first. Leave blank for all of them.",
        ),
        seed: int | None = Input(
            default=None,
            description="The same seed with the same inputs gives the same song. Leave blank for a random one; the metrics name the seed used.",
        ),
        reference_audio: Path | None = Input(
            default=None,
            description="A clip whose style the song continues: a full mix, in any common audio format.",
        ),
        reference_vocals: Path | None = Input(
            default=None,
            description="The vocals of a reference song, instead of reference_audio and together with reference_instrumental.",
        ),
        reference_instrumental: Path | None = Input(
            default=None,
            description="The instrumental of the same reference song, of the same length as reference_vocals.",
        ),
        reference_start: float = Input(
            default=0.0,
            ge=0,
            le=36000,
            description="Where the reference begins in the clip, in seconds.",
        ),
        reference_end: float = Input(
            default=30.0,
            ge=0,
            le=36000,
            description="Where the reference ends in the clip, in seconds. About 30 seconds from the chorus work best.",
        ),
        language: str = Input(
            default="auto",
            choices=["auto", "en", "zh", "yue", "ja", "ko"],
            description="Language of the lyrics: English, Mandarin, Cantonese, Japanese, Korean; auto looks at the script.",
        ),
        max_new_tokens: int = Input(
            default=3000,
            ge=100,
            le=6000,
            description="Longest length of one section: 100 tokens are one second. A section that reaches it is cut off there.",
        ),
        temperature: float = Input(
            default=1.0,
            ge=0.1,
            le=2.0,
            description="Randomness of the composition; 1.0 is what the model was made for.",
        ),
        top_p: float = Input(
            default=0.93,
            ge=0.01,
            le=1.0,
            description="Draw from the likeliest tokens that together have this probability.",
        ),
        top_k: int = Input(
            default=50,
            ge=1,
            le=1024,
            description="Draw from this many of the likeliest tokens.",
        ),
        guidance_scale: float | None = Input(
            default=None,
            ge=1.0,
            le=5.0,
            description="How strictly the song follows tags and lyrics. Leave blank for 1.5 in the first section and 1.2 afterwards; 1.0 turns guidance off and vocals tend to fade.",
        ),
        repetition_penalty: float = Input(
            default=1.1,
            ge=1.0,
            le=2.0,
            description="Above 1.0, tokens already used are less likely: fewer loops, but high values detune.",
        ),
        output: str = Input(
            default="song",
            choices=["song", "vocals", "instrumental", "stems"],
            description="The mix, one of its two tracks, or a zip with the mix and both tracks.",
        ),
        output_format: str = Input(
            default="mp3",
            choices=["mp3", "wav", "flac"],
            description="Format of the audio.",
        ),
        variations: int = Input(
            default=1,
            ge=1,
            le=8,
            description="Takes of the same request, each different; more than one come as a zip.",
        ),
        song: Path | None = Input(
            default=None,
            description="A song made here earlier. Without lyrics of your own it is only rendered anew, as output and output_format ask; with lyrics it is continued by those sections.",
        ),
        redo_section: int | None = Input(
            default=None,
            description="With song: sing this section anew and keep the others, 1 is the first. With lyrics of one section, with those words.",
        ),
    ) -> Path:
        """Make a song."""
        if song:  # the examples that the form starts with are nobody's words for it
            lyrics, genre_tags = lyrics.replace(EXAMPLE_LYRICS, ""), genre_tags.replace(EXAMPLE_TAGS, "")
        with self.guard():
            request = SongRequest(
                genre_tags=genre_tags,
                lyrics=lyrics,
                seed=resolve_seed(seed),
                num_segments=num_segments,
                reference=reference_of(
                    reference_audio, reference_vocals, reference_instrumental, reference_start, reference_end
                ),
                language=language,
                sampling=Sampling(
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    guidance_scale=guidance_scale,
                    repetition_penalty=repetition_penalty,
                ),
                output=output,
                output_format=output_format,
                variations=variations,
            )
            return Path(self.desk.serve(request, uploaded(song, "song"), redo_section, self.record_metric))
