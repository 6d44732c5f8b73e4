#!/bin/bash
#SBATCH --comment=own-pool
#SBATCH --mem=64M
#SBATCH --signal=B:TERM@20
# A guest in a pool of the job: as large as its memory allows. The hosts need only the program.
((${SLURM_RESTART_COUNT:-0} < 5)) || exit 1
# In the description of a guest, a comma of a value is written twice.
kernel=${1:-probe} cmdline=${2-}
guest=name=job$SLURM_JOB_ID,memory=32M,kernel=${kernel//,/,,}${2+,cmdline=${cmdline//,/,,}}
exec mkvmm run --pool job --grace 5s --result "result-$SLURM_JOB_ID.json" \
    --guest "$guest"
