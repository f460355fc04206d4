"""Spherical k-means by faiss (package `faiss-cpu`, extra `semantic`): the centroids that cut embeddings into
clusters, within which samples are compared.

One thread, a fixed seed and a fixed order of the sample give the same bits again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.stages.dedup.semantic import vectors

#: how often clusters that are too large are divided again
ROUNDS = 4


def load_faiss(threads: int) -> Any:
    """The library, with so many threads.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"dedup --method semantic needs faiss ({error}); install it by `pip install 'pairmill[semantic]'`"
        ) from error
    faiss.omp_set_num_threads(threads)
    return faiss


def train(
    faiss: Any, sample: vectors.Codes, clusters: int, *, iterations: int, seed: int, split: float | None
) -> vectors.Codes:
    """Centroids (K, D) of distinct codes (N, D). K is at most N, and exceeds `clusters` by what is divided
    again: clusters with more than `split` times N / clusters of the sample."""
    clusters = min(clusters, len(sample))
    centroids = _kmeans(faiss, sample, clusters, iterations, seed)
    if split is None:
        return centroids
    for _ in range(ROUNDS):
        home, _ = vectors.nearest(sample, centroids)
        sizes = np.bincount(home, minlength=len(centroids))
        large = np.flatnonzero(sizes > split * len(sample) / clusters)
        if not len(large):
            break
        fair = max(1, len(sample) // clusters)
        parts = [
            _kmeans(faiss, sample[home == c], -(-int(sizes[c]) // fair), iterations, seed) for c in large
        ]
        centroids = np.concatenate([np.delete(centroids, large, axis=0), *parts])
    return centroids


def _kmeans(faiss: Any, sample: vectors.Codes, k: int, iterations: int, seed: int) -> vectors.Codes:
    points = sample.astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    training = faiss.Kmeans(
        points.shape[1], k, niter=iterations, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=len(points),
    )  # fmt: skip
    training.train(points)
    found: npt.NDArray[np.float32] = training.centroids.reshape(k, -1)
    codes, sound = vectors.quantise(found)
    # the mean of opposite vectors is no direction; a point of the sample stands for it
    missing = np.flatnonzero(~sound)
    return np.concatenate([codes, sample[missing]]) if len(missing) else codes
