#!/bin/sh
# Runs a CUDA compilation and fails where ptxas says that the kernel will be slow:
#   C7508  setmaxnreg is ignored
#   C7510, C7515  wgmma instructions are serialised
#   spills registers are kept in memory
log=$("$@" 2>&1)
status=$?
if bad=$(printf '%s\n' "$log" | grep -E 'C7508|C7510|C7515|[1-9][0-9]* bytes spill'); then
  printf '%s\nerror: ptxas reports slow code:\n%s\n' "$log" "$bad" >&2
  exit 1
fi
if [ "$status" -ne 0 ]; then
  printf '%s\n' "$log" >&2
else
  printf '%s\n' "$log" | grep -vE 'ptxas info|bytes stack frame' | grep . >&2
fi
exit "$status"
