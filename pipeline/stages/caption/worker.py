"""What the caption stage does in a worker: pictures through captioner, filter and CLIPs, a batch at a time.

Each picture is decoded once, in threads ahead of the models, prepared once for each model and encoded once by
it, however many captions it has. Batches are cut after every `batch_size` pictures that can be read, so that
what a batch holds follows from the shard alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.images import CorruptImageError, decode
from models.inference.captioner import load_writer
from models.inference.clip import ClipScorer, load_clip
from models.inference.generation import Beam, Nucleus
from models.inference.matcher import load_matcher
from pipeline.errors import ConfigError
from pipeline.pictures import NO_CAPTION, NO_PICTURE, UNDECODABLE, Row, prepared
from pipeline.stages.caption.captioned import Captioned
from pipeline.stages.caption.config import CaptionConfig

#: batches that are being decoded ahead of the one that is computed
AHEAD = 2
#: open_clip brings the shorter side to the model's size: a line of pixels would become gigabytes
MAX_ASPECT = 100


class Picture(NamedTuple):
    """A picture as each of the models takes it; None for a model that is not there."""

    captioner: Any
    filter: Tensor | None
    clips: tuple[Tensor, ...]


class CaptionWorker:
    """Holds the loaded models; used by one thread."""

    def __init__(self, config: CaptionConfig) -> None:
        """Raises ConfigError when a model cannot be loaded."""
        self.config = config
        # the order of additions, and so the last bit, follows from the number of threads
        torch.set_num_threads(max(1, int(config.cpus)))
        device = None if config.device == "auto" else config.device
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        try:
            self.writer = (
                load_writer(config.captioner, device=device, dtype=dtype, prompt=config.prompt)
                if config.captioner
                else None
            )
            self.matcher = load_matcher(config.filter, device=device, dtype=dtype) if config.filter else None
            pairs = ((config.clip, config.clip_pretrained), (config.clip2, config.clip2_pretrained))
            self.clips = [load_clip(m, pretrained=tag, device=device) for m, tag in pairs if m]
            self.how = _sampling(config)
            if self.writer:
                self.writer.check(self.how)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def names(self) -> dict[str, str]:
        """What each model is, for the manifest."""
        found = {"captioner": self.writer.name} if self.writer else {}
        if self.matcher:
            exported = self.matcher.loaded.exported
            found["filter"] = f"{exported.recipe}-{exported.size}"
        return found | {f"clip{n or ''}": clip.name for n, clip in zip(("", 2), self.clips, strict=False)}

    def work(self, rows: Iterable[Row]) -> Iterator[tuple[str, Captioned | str]]:
        """The key of each row with what is said of it, or with the reason why nothing is; those of a batch
        together."""
        batch: list[tuple[Row, Picture]] = []
        ahead = AHEAD * self.config.batch_size
        for row, found in prepared(rows, self._prepare, threads=self.config.decode_threads, ahead=ahead):
            if isinstance(found, str):
                yield row.key, found
                continue
            batch.append((row, found))
            if len(batch) == self.config.batch_size:
                yield from self._say(batch)
                batch = []
        if batch:
            yield from self._say(batch)

    def _prepare(self, row: Row) -> Picture | str:
        if row.picture is None:
            return NO_PICTURE
        if self.writer is None and not row.caption.strip():
            return NO_CAPTION
        try:
            image = decode(row.picture)
        except CorruptImageError:
            return UNDECODABLE
        if max(image.size) > MAX_ASPECT * min(image.size):
            return UNDECODABLE
        return Picture(
            captioner=self.writer.prepare(image) if self.writer else None,
            filter=self.matcher.loaded.preprocess(image) if self.matcher else None,
            clips=tuple(clip.preprocess(image) for clip in self.clips),
        )

    def _say(self, batch: Sequence[tuple[Row, Picture]]) -> Iterator[tuple[str, Captioned]]:
        rows, pictures = [row for row, _ in batch], [picture for _, picture in batch]
        written: list[list[str]] = [[] for _ in batch]
        if self.writer:
            written = self.writer.write_prepared(
                [p.captioner for p in pictures], how=self.how, keys=[r.key for r in rows],
                rows=self.config.rows,
            )  # fmt: skip
        # the texts of a picture: what was written, then the web's where there is one
        texts = [
            [*own, *([r.caption] if r.caption.strip() else [])] for own, r in zip(written, rows, strict=True)
        ]
        itm = self._matched([p.filter for p in pictures if p.filter is not None], texts)
        clip = self._cosines(0, pictures, texts)
        clip2 = self._best(pictures, written, clip)
        for at, own in enumerate(written):
            n = len(own)
            yield (
                rows[at].key,
                Captioned(
                    captions=own if self.writer else None,
                    itm=itm[at][:n] if itm and self.writer else None,
                    clip=clip[at][:n] if clip and self.writer else None,
                    clip2=clip2[at] if clip2 else None,
                    web_itm=itm[at][n] if itm and len(itm[at]) > n else None,
                    web_clip=clip[at][n] if clip and len(clip[at]) > n else None,
                ),
            )

    def _matched(self, pictures: Sequence[Tensor], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The filter's probability of each text of each picture; nothing without a filter."""
        if self.matcher is None:
            return []
        owner = [at for at, own in enumerate(texts) for _ in own]
        flat = [text for own in texts for text in own]
        found = iter(
            self.matcher.matched(torch.stack(list(pictures)), flat, picture=owner, rows=self.config.rows)
        )
        return [[next(found) for _ in own] for own in texts]

    def _cosines(
        self, which: int, pictures: Sequence[Picture], texts: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """The cosine of each text and its picture by one of the CLIPs; nothing without it."""
        if which >= len(self.clips):
            return []
        scorer: ClipScorer = self.clips[which]
        flat = [text for own in texts for text in own]
        if not flat:
            return [[] for _ in texts]
        low = self.config.precision == "bf16"
        with torch.autocast(scorer.device.type, torch.bfloat16) if low else nullcontext():
            image_BE = scorer.encode_images(torch.stack([p.clips[which] for p in pictures]))
            text_PE = scorer.encode_texts(flat)
        owner_P = torch.tensor([at for at, own in enumerate(texts) for _ in own])
        found = iter((image_BE[owner_P] * text_PE).sum(dim=1).tolist())
        return [[next(found) for _ in own] for own in texts]

    def _best(
        self, pictures: Sequence[Picture], written: Sequence[Sequence[str]], clip: Sequence[Sequence[float]]
    ) -> list[list[float | None]]:
        """The second CLIP's cosine of the first one's best, None for the others; nothing without it."""
        if len(self.clips) < 2:
            return []
        chosen = [
            best_places(scores[: len(own)], self.config.clip2_top)
            for own, scores in zip(written, clip, strict=True)
        ]
        asked = [[own[i] for i in places] for own, places in zip(written, chosen, strict=True)]
        judged = self._cosines(1, pictures, asked)
        found: list[list[float | None]] = [[None] * len(own) for own in written]
        for own, places, scores in zip(found, chosen, judged, strict=True):
            for place, score in zip(places, scores, strict=True):
                own[place] = score
        return found


def best_places(scores: Sequence[float], most: int) -> list[int]:
    """Where the highest scores stand, best first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:most]


def _sampling(config: CaptionConfig) -> Beam | Nucleus:
    if config.sampling == "beam":
        beam = config.beam
        return Beam(
            beams=beam.beams, min_length=beam.min_length, max_length=beam.max_length,
            length_penalty=beam.length_penalty, repetition_penalty=beam.repetition_penalty,
        )  # fmt: skip
    nucleus = config.nucleus
    return Nucleus(
        candidates=config.candidates, p=nucleus.p, top_k=nucleus.top_k, min_length=nucleus.min_length,
        max_length=nucleus.max_length, repetition_penalty=nucleus.repetition_penalty, seed=config.seed,
    )  # fmt: skip
