#!/bin/bash
# Trains on several machines under SLURM, over any number of time limits:   sbatch examples/slurm.sh
#
# Two minutes before the time limit SLURM sends USR1 to this script; it is passed on to the training processes, which
# finish the step, save and leave, and the job is queued again. The same command then continues where it stopped. A
# job that is preempted or loses a machine is queued again by SLURM and goes on from the last checkpoint.
# Change: machines, GPUs and time here, the words of `train` below. The run folder must be one that all machines share.
#
#SBATCH --job-name=mcvd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mcvd-%j.log

train=(mcvd train ucf101-concat --data prepared/ucf101 --output runs/ucf101-concat --set sharding=full)

export NODES=$SLURM_NNODES GPUS=$SLURM_GPUS_ON_NODE JOB=$SLURM_JOB_ID
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD

# One torchrun a machine starts one process a GPU. It would die of USR1 and take its processes along: it is told to
# ignore the signal, and its children, the training processes, are sent it one by one. (A signal ends bash's `wait`, not
# the training: then it waits again.)
per_machine='
    trap "interrupted=1; pkill -USR1 --parent \$torchrun" USR1
    (trap "" USR1; exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 0 --rdzv-id "$JOB" \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" -m "$@") &
    torchrun=$!
    interrupted=1
    while [ $interrupted ]; do interrupted=; wait $torchrun; code=$?; done
    exit $code'

trap 'interrupted=1; time_is_up=1; kill -USR1 $srun' USR1
srun --kill-on-bad-exit=1 bash -c "$per_machine" per_machine "${train[@]}" &
srun=$!
interrupted=1
while [ $interrupted ]; do interrupted=; wait $srun; code=$?; done

if [ $code -eq 0 ] && [ $time_is_up ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
