#!/bin/bash
# A recipe on the machines of a SLURM job: sbatch examples/cluster/slurm.sh recipe.yaml
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8
# SIGTERM 120 s before the time limit: the step is finished and saved, and the same call continues
#SBATCH --signal=TERM@120
set -eu
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# by the job's number, since another job may share the machine
address=$host:$((29500 + SLURM_JOB_ID % 1000))
# exec: srun passes the signal to the task itself, which must not be a shell
srun bash -c 'exec posttrain launch --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
  --address "$0" "$@" --resume' "$address" "$@"
