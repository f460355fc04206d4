"""Runs a stage on two nodes, of which one is killed midway: `python -m tests.prove.lost_node OUTPUT`."""

from __future__ import annotations

import sys
import threading
import time

import psutil
import ray
from ray.cluster_utils import Cluster

from pipeline import manifest
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.prove.bad_stage import BadConfig, BadStage

UNITS = 16


def main(output: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def kill_midway() -> None:
        while len(manifest.list_done(output)) < UNITS // 4:
            time.sleep(0.05)
        for process in node.all_processes["raylet"]:
            psutil.Process(process.process.pid).kill()
        print("killed at", len(manifest.list_done(output)), flush=True)

    threading.Thread(target=kill_midway, daemon=True).start()
    summary = run_stage(
        BadStage(BadConfig(units=UNITS, seconds=1.0)), output, RunOptions(workers=2, grace=1.0)
    )
    print("done", summary.done, flush=True)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    main(sys.argv[1])
