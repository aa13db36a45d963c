#!/bin/bash
# Training on several machines under SLURM, one accelerate launcher on each:
#   sbatch --nodes 2 launch/slurm.sh recipes/finetune.py --config recipes/configs/tinysd_finetune.yaml
# What follows the script is a recipe and its options. LAUNCH_FILE=launch/fsdp2.yaml sbatch ... takes another launch file.
# Three minutes before the time limit the recipe is sent SIGTERM: it saves and leaves, and the job is queued again to go
# on from there. The run folder must be one that all machines see.
#SBATCH --job-name=safetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=safetune-%j.log

# The launcher kills what has not left this many seconds after SIGTERM; by default 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

settings=(
    --config_file "${LAUNCH_FILE:-launch/multi_node.yaml}"
    --num_machines "$SLURM_NNODES"
    --num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE))
    --main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    --main_process_port $((20000 + SLURM_JOB_ID % 20000))
    --deepspeed_multinode_launcher standard # for ZeRO's files, which would start ssh
)
# A machine learns its rank only inside the step.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash \
    "${settings[@]}" "$@" &
step=$!

stopped=no
trap 'stopped=yes; kill -TERM "$step"' TERM
wait "$step"
status=$?
if [ $stopped = yes ]; then
    wait "$step" # the signal ended the first wait
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
