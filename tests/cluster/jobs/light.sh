#!/bin/bash
# A guest that waits, without a lease to renew: many of them fit on a small machine.
exec mkvmm run --on /run/mkvmm.sock --guest "name=job$SLURM_JOB_ID,memory=$MKVMM_MEMORY,kernel=probe,cmdline=shell"
