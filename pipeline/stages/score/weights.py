"""The mark of a model's content: `pipeline.weights`."""

from pipeline.weights import model_fingerprint

__all__ = ["model_fingerprint"]
