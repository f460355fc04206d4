"""Export: what a folder of images and its columns say, in the form that another project reads."""

from pipeline.stages.export.stage import Export, ExportConfig

__all__ = ["Export", "ExportConfig"]
