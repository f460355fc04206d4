"""Our side of `pairmill bench discover`: the stage's work on one archive, without Ray and without writing.

python -m jobs.bench.discover_run FILE.wat.gz
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from pipeline.stages.discover import DiscoverConfig, DiscoverStage


def main(archive: str) -> None:
    """Reads the archive, and prints how many pairs were kept and why others were not."""
    stage = DiscoverStage(DiscoverConfig(input=archive, rules="none"))
    (unit,) = stage.plan([])
    stage.start()
    with tempfile.TemporaryDirectory() as scratch:
        output = stage.run(unit, Path(scratch))
    stage.close()
    print(json.dumps({"rows": output.counts.kept, **output.counts.dropped}))


if __name__ == "__main__":
    main(sys.argv[1])
