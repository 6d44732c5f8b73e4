#!/bin/bash
# What a job of one user can do to a guest of another on the same host: each attempt that
# succeeds is a line "could: …" of the output. The last ones are its own, and have to.
guest=$1 worker=$2 client=$3 job=$4
socket=/run/mkvmm.sock

# attempt NAME COMMAND…
attempt() {
    local name=$1
    shift
    if timeout 10 "$@" >/dev/null 2>&1 </dev/null; then
        echo "could: $name"
    else
        echo "could not: $name"
    fi
}

for verb in show pause delete logs unload resume; do
    attempt "mkvmm $verb" mkvmm "$verb" "$guest" --socket "$socket"
done
attempt "kill it" mkvmm kill "$guest" --force --socket "$socket"
attempt "create a guest of the same name" mkvmm create "$guest" --memory 8M --socket "$socket"
for process in "$worker" "$client"; do
    attempt "send a signal to $process" kill -0 "$process"
    attempt "list the files of $process" ls "/proc/$process/fd/"
    attempt "read the memory of $process" head -c 1 "/proc/$process/mem"
    attempt "read the environment of $process" head -c 1 "/proc/$process/environ"
    for hierarchy in memory cpuset cpuacct freezer; do
        group=$(sed -n "s/^[0-9]*:$hierarchy://p" "/proc/$process/cgroup")
        attempt "enter the $hierarchy cgroup of $process" sh -c "echo 0 >/sys/fs/cgroup/$hierarchy$group/cgroup.procs"
    done
done
own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
attempt "raise its own limit" sh -c "echo 1G >/sys/fs/cgroup/memory$own/memory.limit_in_bytes"
attempt "leave its own processors" sh -c "echo 0 >/sys/fs/cgroup/cpuset/tasks"
attempt "cancel the job" sh -c "scancel -v $job 2>&1 | grep -q 'Access/permission denied' && exit 1; exit 0"
attempt "suspend the job" scontrol suspend "$job"
attempt "change the job" scontrol update "jobid=$job" timelimit=1
attempt "run in the job" srun --jobid="$job" --overlap -n1 true
attempt "read the home" ls "$HOME/../ada"
attempt "list the own guests" mkvmm list --socket "$socket"
attempt "run an own guest" mkvmm run --on "$socket" --guest "name=own$SLURM_JOB_ID,memory=8M,kernel=probe"
