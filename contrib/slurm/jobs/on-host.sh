#!/bin/bash
#SBATCH --mem=20M
#SBATCH --signal=B:TERM@20
# A guest in the pool of its host. job_submit.lua has rounded the memory up, and says to what.
# `exec`: Slurm's SIGTERM reaches the direct children of a step only.
exec mkvmm run --on /run/mkvmm.sock --grace 5s --lease 10s --renew /etc/slurm/mkvmm-renew \
    --result "result-$SLURM_JOB_ID.json" \
    --guest "name=job$SLURM_JOB_ID,memory=$MKVMM_MEMORY,kernel=${1:-probe},cmdline=${2:-}"
