# shellcheck shell=bash
# Copy to site.sh and keep what fits your cluster. It is sourced in every job.

# module load python/3.11 cuda/12.8
# source /shared/envs/pairmill/bin/activate

# Pairmill in a container: a program that enters it, first on PATH, and the same for the other nodes
# export PATH=/shared/bin:$PATH PAIRMILL_COMMAND=/shared/bin/pairmill

# Credentials belong into files that only you can read, not into the shell from which you submit:
# export AWS_PROFILE=crawl                       # ~/.aws/credentials
# export HF_TOKEN_PATH=$HOME/.config/hf-token

# Scratch on the node: units are built there before they are committed. Keep the path short.
# export TMPDIR=/scratch/$SLURM_JOB_ID

# Models that were fetched once, for nodes without a network
# export HF_HOME=/shared/cache/huggingface HF_HUB_OFFLINE=1

# Nodes with several networks: which one Ray and torch use
# export PAIRMILL_INTERFACE=ib0 NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# How long all nodes of a job have to start Ray; the first start reads Python from a cold network disk
# export PAIRMILL_START_SECONDS=600
