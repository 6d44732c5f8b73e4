#!/bin/bash
#SBATCH --mem=20M
#SBATCH --signal=B:TERM@20
# A guest in the pool of its host. job_submit.lua has rounded the memory up, and says to what.
# A guest whose process is killed again and again, by a limit for instance, is not started forever.
((${SLURM_RESTART_COUNT:-0} < 5)) || exit 1
# In the description of a guest, a comma of a value is written twice.
kernel=${1:-probe} cmdline=${2-}
guest=name=job$SLURM_JOB_ID,memory=$MKVMM_MEMORY,kernel=${kernel//,/,,}${2+,cmdline=${cmdline//,/,,}}
# `exec`: Slurm's SIGTERM reaches the direct children of a step only.
exec mkvmm run --on /run/mkvmm.sock --grace 5s --lease 10s --renew /etc/slurm/mkvmm-renew \
    --result "result-$SLURM_JOB_ID.json" \
    --guest "$guest"
