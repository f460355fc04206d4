"""Takedown: removes pictures and all that was kept of them, by URL, domain, uid or hash, and keeps them out.

    pairmill takedown --images images --columns columns/clip columns/dedup --shards shards --url URL

Nothing but the shards that hold such a row is opened beyond its parquet, or written. What becomes of a row:

* candidates: it stays, since the keys of the crawl come from its place, and is emptied;
* images: the sample leaves the tar; its row in the parquet keeps `key`, `uid` and the reason `taken_down`;
* columns: the row of the key is removed (over candidates: emptied);
* packed shards: the sample is removed from tar, parquet, statistics and indexes.

Units are replaced through the commit's journal, so a crash costs no other sample, and the same command run
again finishes what is left. Since what a unit became is an input of the units made from it, their manifests
are brought up to date as well: a rerun of score or pack finds everything done.
"""

from pipeline.takedown.report import Failure, FolderReport, Gone, Report
from pipeline.takedown.run import Folders, take_down

__all__ = ["Failure", "FolderReport", "Folders", "Gone", "Report", "take_down"]
