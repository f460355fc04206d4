"""What the batch scripts of `slurm/` end in: `pairmill batch VERB --config x.yaml --option value`.

`pairmill batch node ...` is what it starts on each node of the job. Outside a job there is no use for either.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.slurm import batch, node
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code of the command, or 75 where the job was stopped."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: pairmill batch COMMAND [--config FILE.yaml] [--option value ...]\n\n" + (__doc__ or ""))
        if argv:
            return 0
        raise ConfigError("no command; submit one of the scripts of slurm/ with sbatch")
    return node.main(argv[1:]) if argv[0] == "node" else batch.main(argv)
