#!/usr/bin/env bash
# 8 machines of 8 GPUs under SLURM, pre-emptible: 120 s before its end the job is told, saves and is put into the queue
# again, and resumes from its checkpoint. Also the way back after a machine was lost.
#   sbatch recipes/cluster/slurm.sh recipes/qwen2.5-vl-72b.yaml --set data.path=/shared/train.jsonl --out /shared/run
#SBATCH --job-name=cwdpo
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail

export MASTER_ADDR MASTER_PORT=29500
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# What recipes/accelerate/fsdp2.yaml says, for processes that SLURM itself starts (signals and exit codes then arrive).
export ACCELERATE_USE_FSDP=true FSDP_VERSION=2 FSDP_AUTO_WRAP_POLICY=TRANSFORMER_BASED_WRAP
export FSDP_STATE_DICT_TYPE=SHARDED_STATE_DICT FSDP_RESHARD_AFTER_FORWARD=true FSDP_CPU_RAM_EFFICIENT_LOADING=false

srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  exec cwdpo train "$@"
' cwdpo "$@"
code=$?

# 75: told to stop, saved. Anything else but 0 is for a person to look at.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
