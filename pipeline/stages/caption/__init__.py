"""Caption: writes synthetic captions of every picture, and judges them beside the web's; a column folder."""

from pipeline.stages.caption.config import BeamOptions, CaptionConfig, NucleusOptions
from pipeline.stages.caption.stage import CaptionStage

__all__ = ["BeamOptions", "CaptionConfig", "CaptionStage", "NucleusOptions"]
