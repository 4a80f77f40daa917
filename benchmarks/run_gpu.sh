#!/usr/bin/env bash
# Tests marked gpu and all benchmarks on a machine with an NVIDIA GPU, in under nine minutes:
#
#     bash benchmarks/run_gpu.sh                 # from the repository root
#     DRY_RUN=1 bash benchmarks/run_gpu.sh       # print the commands
#
# Not among them, as kernels and networks are compiled for minutes:
#
#     REQUIRE_CUDA=1 python -m pytest -m gpu tests/test_gathered_pool.py tests/test_determinism.py
#     python -m benchmarks.step --size 224 --batch 8 --forms uncompiled_bf16 \
#       uncompiled_gathered_pool_bf16 chosen_bf16 gathered_pool_bf16
#
# Results, logs and JUnit XML go to $OUT (benchmarks/results/gpu), clips to a temporary folder.
# $PYTHON (python) needs torch, DALI and this repository's other packages; nothing is downloaded.
# Each part has a time limit of its own: one that fails or hangs does not stop the rest. The exit
# status is the number of parts that failed.

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-benchmarks/results/gpu}
python=${PYTHON:-python}
failed=0

# part NAME SECONDS COMMAND...: runs it, output to $out/NAME.log and its end to the terminal.
part() {
  local name=$1 limit=$2 status
  shift 2
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
  [ -n "${DRY_RUN:-}" ] && return
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  tail -n 60 "$out/$name.log"
  printf '== %s: exit status %s after %s s in all\n' "$name" "$status" "$SECONDS"
  [ "$status" -eq 0 ] || failed=$((failed + 1))
}

if [ -z "${DRY_RUN:-}" ]; then
  mkdir -p "$out" || exit 1
  data=$(mktemp -d) || exit 1
  trap 'rm -rf "$data"' EXIT
else
  data=DATA
fi

part machine 20 bash -c 'nvidia-smi; ldconfig -p | grep nvcuvid || echo "no libnvcuvid: no NVDEC"
  "$0" -c "
import sys, cv2, numpy, torch, nvidia.dali
print(\"python\", sys.version.split()[0], \"torch\", torch.__version__, \"CUDA\", torch.version.cuda,
      \"cuDNN\", torch.backends.cudnn.version(), \"DALI\", nvidia.dali.__version__,
      \"OpenCV\", cv2.__version__, \"NumPy\", numpy.__version__)
sys.exit(not torch.cuda.is_available())"' "$python"

part tests 90 env REQUIRE_CUDA=1 "$python" -m pytest -q -m gpu --junitxml "$out/tests.xml" \
  --ignore tests/test_gathered_pool.py --ignore tests/test_determinism.py

# Files in the page cache stage by stage, and cold ones: of RGB and RGB-D all, of depth the whole.
part loader 150 "$python" -m benchmarks.loader --data "$data" --batch 16 --clips 192 --windows 3 \
  --only 'cuda/*/rgb/*/warm' 'cuda/*/rgbd/*/warm' 'cuda/*/*/motion/*' --json "$out/loader.json"
part loader_memory 25 "$python" -m benchmarks.loader --data "$data/small" --memory-curve 2000 \
  --clips 16 --size 64 --frames 8 --batch 4 --rgb-size 96x72 --depth-size 96x72 \
  --json "$out/loader_memory.json" --plot "$out/loader_memory.png"

# One batch size compares all forms, two more show where the device is full.
part step_8 80 "$python" -m benchmarks.step --size 224 --batch 8 --steps 7 --json "$out/step_8.json"
part step_16 30 "$python" -m benchmarks.step --size 224 --batch 16 --steps 5 \
  --forms uncompiled_bf16 chosen_bf16 --json "$out/step_16.json"
part step_32 20 "$python" -m benchmarks.step --size 224 --batch 32 --steps 5 \
  --forms uncompiled_bf16 --json "$out/step_32.json"
part step_umdr 60 "$python" -m benchmarks.step --network umdr --size 224 --batch 8 --steps 5 \
  --forms straightforward_tf32 uncompiled_bf16 chosen_bf16 --json "$out/step_umdr.json"

# Uncompiled, as compiling eight cases takes longer than measuring them.
part end_to_end 60 "$python" -m benchmarks.end_to_end --data "$data" --clips 192 --windows 3 \
  --networks decoupled r3d_18 --sources frames videos --compile off --json "$out/end_to_end.json"

printf '\n%s parts failed; results in %s\n' "$failed" "$out"
exit "$failed"
