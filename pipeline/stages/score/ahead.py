"""Work on rows in threads, ahead of the one who takes the results: `pipeline.pictures`."""

from pipeline.pictures import prepared

__all__ = ["prepared"]
