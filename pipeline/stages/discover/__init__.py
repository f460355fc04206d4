"""discover: from web archives to a table of image-text candidates."""

from pipeline.stages.discover.stage import DiscoverConfig, DiscoverStage

__all__ = ["DiscoverConfig", "DiscoverStage"]
