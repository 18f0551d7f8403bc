#!/bin/bash
# What runs on each machine of a SLURM job: accelerate starts one process for each of its GPUs.
# Usage: node.sh FAMILY/RECIPE/VARIANT [--key value …]
set -euo pipefail
config=${1:?"usage: node.sh FAMILY/RECIPE/VARIANT [--key value …]"}
shift

recipe=${config%/*}
exec "${PYTHON:-.venv/bin/python}" -m accelerate.commands.launch \
    --config_file "configs/launch/${PROFILE:-multi-node-zero3}.yaml" \
    --num_machines "$SLURM_NNODES" \
    --num_processes $((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1})) \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_PROCESS_IP" \
    --main_process_port "$MAIN_PROCESS_PORT" \
    -m "recipes.${recipe//\//.}" --config "configs/$config.yaml" "$@"
