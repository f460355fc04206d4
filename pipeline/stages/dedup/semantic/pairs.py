"""Who means the same as whom within one cluster: the definition of a semantic duplicate.

Samples are looked at in an order: by key, or as SemDeDup has it from the least similar to the centroid on
(the smaller key of two alike). Each is compared with those before it in its cluster, and has

    similarity   the greatest cosine to one before it; none for the first
    before       that one: an equal vector if there is one, else the first of several

and is a duplicate of it when the similarity exceeds 1 - eps, as in the paper, whether or not that one is a
duplicate itself. `before` always leads to an earlier one, hence in the end to one that is kept.

Equal vectors are compared once: a million copies of one picture cost no more than one of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.stages.dedup.semantic import vectors

Places = npt.NDArray[np.int64]


def find_earlier(codes: vectors.Codes) -> tuple[Places, vectors.Floats]:
    """(before, similarity) of the samples of one cluster (N, D), in the order in which they are looked at;
    -1 and NaN for the first."""
    first, place = _distinct(codes)
    before, similarity = vectors.nearest(codes[first], codes[first], earlier=True)
    before = np.where(before < 0, -1, first[before])[place]
    similarity = similarity[place]
    copies = first[place] != np.arange(len(codes))
    before[copies], similarity[copies] = first[place][copies], 1.0
    return before, similarity


def _distinct(codes: vectors.Codes) -> tuple[Places, Places]:
    """(place of the first of each vector, in their order; for each row which of these it equals)."""
    rows = np.ascontiguousarray(codes).view(np.dtype((np.void, 2 * codes.shape[1]))).ravel()
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[which.reshape(-1)].astype(np.int64)
