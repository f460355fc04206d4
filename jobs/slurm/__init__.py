"""SLURM: what a batch script of `slurm/` runs, how chains are submitted, what is known of jobs.

allocation   what SLURM gave this job: nodes, CPUs, memory, which restart it is
books        the run folder: jobs submitted, how each attempt ended
batch        a job: starts what the command needs, listens to signals, requeues
node         what runs on each node: a part of Ray's cluster, or torchrun
ray_nodes    Ray over the nodes of a job; its own processes, ports, token and temporary folder
training     torchrun over the nodes of a job
again        whether a job that ended goes on in a requeued one
offspring    the processes that this one started, all of them and no other
options      options of sbatch that a chain may name
submission   which jobs a chain comes to
job          a job as sbatch gets it
known        the jobs of a chain that were submitted before
queue        squeue, sacct, scancel
knowledge    what SLURM and the run folder together know of the jobs of a chain
wording      the same in a few words
lineage      which step reads what another one writes
scripts      where the batch scripts lie
"""
