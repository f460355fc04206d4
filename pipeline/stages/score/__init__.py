"""Score: judges every picture of an image folder; the judgement is a column folder. Kinds: `clip`."""

from pipeline.stages.score.stage import ScoreConfig, ScoreStage

__all__ = ["ScoreConfig", "ScoreStage"]
