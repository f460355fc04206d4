"""The options of method semantic. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

#: which of several near samples stays
SMALLEST_KEY, FAR_FROM_CENTROID = "smallest_key", "far_from_centroid"
KEEP = (SMALLEST_KEY, FAR_FROM_CENTROID)


@dataclass(frozen=True, kw_only=True)
class SemanticOptions:
    """Which samples mean the same (SemDeDup, arXiv 2303.09540).

    Attributes:
        eps: samples of one cluster whose embeddings have a cosine above 1 - eps mean the same.
        keep: who is looked at first within a cluster, and so stays: the `smallest_key`, or, as SemDeDup has
            it, the one `far_from_centroid`.
        embedding: the column that is compared; a fixed-size list of floats of any length.
        where: compare only samples for which this predicate is true, over the columns of the input and of
            `columns`; the others are neither duplicates nor the reason that another is one.
        clusters: k of k-means. Null: the root of half the number of samples, where finding a sample's
            cluster costs as much as comparing it within.
        sample: samples that k-means is trained on. Null: 64 a cluster.
        iterations: of k-means.
        split: a cluster with more than so many times its fair share of the sample is divided once more.
            Null: none is.
        seed: of the sample and of k-means.
        group: shards that one unit of assign and of collect takes together; a worker holds their vectors.
        threads: of k-means. Another number may give centroids that differ in their last bits.
    """

    eps: float = 0.05
    keep: str = SMALLEST_KEY
    embedding: str = "image_embedding"
    where: str | None = None
    clusters: int | None = None
    sample: int | None = None
    iterations: int = 20
    split: float | None = 8.0
    seed: int = 0
    group: int = 16
    threads: int = 1
