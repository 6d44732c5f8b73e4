#!/bin/bash
# A guest with two vCPUs, whose job has one processor.
exec mkvmm run --on /run/mkvmm.sock --grace 1s --result "result-$SLURM_JOB_ID.json" \
    --guest "name=job$SLURM_JOB_ID,memory=$MKVMM_MEMORY,cpus=2,kernel=$1"
