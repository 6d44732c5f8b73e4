#!/bin/bash
# A guest that has more memory than its job says, for which there is no room.
exec mkvmm run --on /run/mkvmm.sock --result "result-$SLURM_JOB_ID.json" \
    --guest "name=job$SLURM_JOB_ID,memory=$1,kernel=probe"
