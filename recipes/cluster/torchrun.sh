#!/usr/bin/env bash
# Several GPUs of one machine, or of several, without accelerate's configuration: every GPU holds the whole model (DDP).
#   bash recipes/cluster/torchrun.sh RECIPE [--out RUN]
# On several machines start it on each, with MACHINES, MACHINE (0, 1, …) and MAIN (address of machine 0) set.
# The run directory must lie on a file system that all machines share.
set -euo pipefail

exec torchrun \
  --nnodes "${MACHINES:-1}" --node_rank "${MACHINE:-0}" \
  --master_addr "${MAIN:-127.0.0.1}" --master_port "${PORT:-29500}" \
  --nproc_per_node "${GPUS:-gpu}" \
  -m cwdpo train "$@"
