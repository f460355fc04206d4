"""Score: judges every picture of an image folder, or every candidate; the judgement is a column folder.

Kinds: `stage.KINDS`."""

from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.stage import ScoreStage

__all__ = ["ScoreConfig", "ScoreStage"]
