# shellcheck shell=bash
# Sourced by every job of this folder, before `pairmill` starts. What your cluster needs (modules, a virtual
# environment, caches, proxies) goes into site.sh beside this file; site.example.sh shows one.

# Until `pairmill` listens, the warning that time runs out must not end the job.
trap '' USR1

# The scripts name what they take over from the shell that submits (--export=...); the steps that a job starts
# on its nodes get all that the job has.
unset SLURM_EXPORT_ENV

here=$(dirname "${BASH_SOURCE[0]}")
if [[ -f $here/site.sh ]]; then
  set +u # modules and conda use variables that nobody has set
  # shellcheck source=site.example.sh
  source "$here/site.sh"
  set -u
fi

if ! command -v pairmill >/dev/null; then
  echo "pairmill is not on PATH on $(hostname): activate its environment before sbatch, or in $here/site.sh" >&2
  exit 2
fi
