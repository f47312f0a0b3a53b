#!/bin/bash
# Trains a recipe on several machines of a Slurm cluster. Set the two names, then, where the Python
# environment with hf_relopt is active:   sbatch slurm.sh
# Machines and GPUs of each: the lines below, or sbatch --nodes 4 --gpus-per-node 4 slurm.sh
# After a time limit or a crash, the same command resumes from the last checkpoint.

# Name 1: the partition (`sinfo` lists them).
#SBATCH --partition=gpu
#SBATCH --job-name=hf_relopt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# (sbatch reads no such line after the first command.)

# Name 2: the recipe (`hf-relopt recipes list`).
RECIPE=pretrain-gpt2-124m/fromage_spectral

set -euo pipefail
GPUS=${SLURM_GPUS_ON_NODE:-8}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Another port for each job: two may meet on one machine.
PORT=$((20000 + SLURM_JOB_ID % 20000))

# One launcher per machine, and its rank is known only there: so bash reads SLURM_NODEID under srun.
# `hf-relopt recipes run` becomes `accelerate launch` with these flags.
export RECIPE GPUS FIRST PORT
srun --kill-on-bad-exit=1 --cpu-bind=none bash -c '
    exec hf-relopt recipes run "$RECIPE" --accelerate multi-node \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST" --main_process_port "$PORT" \
        "$@"' bash "$@"
