#!/bin/bash
# Fine-tuning on two nodes with four GPUs each: one task per GPU, all started by srun.
#   sbatch slurm_finetune.sh lgps.extxyz runs/lgps
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail
frames=$1
output=$2

# Neither wandb nor model files are fetched: compute nodes often have no network. 7net-0 comes with sevenn.
source "${VENV:-$HOME/venv}/bin/activate"

# SLURM tells the tasks two minutes before the time is over: they write a checkpoint and end. Submitted again (or put back
# into the queue after a node failed), the same script goes on from the last checkpoint, thanks to --resume.
# Every task must see all GPUs of its node (--gres, not --gpus-per-task): each takes the one of its local rank.
# Without srun this would be one process on one GPU, whatever was asked for above.
srun --kill-on-bad-exit=1 ase-finetune fit 7net-0 "$frames" --output "$output" --resume \
    --method reewc --epochs 50 --batch_size 32
