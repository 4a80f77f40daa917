#!/usr/bin/env bash
# All tests marked gpu and all benchmarks on a machine with an NVIDIA GPU, in groups of less than
# nine minutes each:
#
#     bash benchmarks/run_gpu.sh                 # from the repository root: all groups
#     bash benchmarks/run_gpu.sh tests step      # some of: tests step batches loader training demo
#     DRY_RUN=1 bash benchmarks/run_gpu.sh       # print the commands
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

# Versions, what this machine lacks, and every test that needs a GPU. A module that cannot be
# imported fails by itself.
group_tests() {
  part machine 20 bash -c 'nvidia-smi; ldconfig -p | grep nvcuvid || echo "no libnvcuvid: no NVDEC"
    "$0" -c "
import sys, cv2, numpy, torch, nvidia.dali
print(\"python\", sys.version.split()[0], \"torch\", torch.__version__, \"CUDA\", torch.version.cuda,
      \"cuDNN\", torch.backends.cudnn.version(), \"DALI\", nvidia.dali.__version__,
      \"OpenCV\", cv2.__version__, \"NumPy\", numpy.__version__)
sys.exit(not torch.cuda.is_available())"' "$python"
  part doctor 60 "$python" -m engine.doctor
  part tests 440 env REQUIRE_CUDA=1 "$python" -m pytest -q -m gpu --durations=30 \
    --continue-on-collection-errors --junitxml "$out/tests.xml"
}

# At one batch size: the straightforward form beside the chosen one, then the chosen one beside what
# is to be decided by measurement, with the kernels that hold it.
group_step() {
  part step 220 "$python" -m benchmarks.step --size 224 --batch 8 --steps 9 --profile \
    --json "$out/step.json"
  part step_tried 300 "$python" -m benchmarks.step --size 224 --batch 8 --steps 9 --profile --forms \
    chosen_bf16 gathered_pool_bf16 uncompiled_bf16 uncompiled_gathered_pool_bf16 joined_points \
    split_pool graphed compiled_graphed --json "$out/step_tried.json"
}

# Where the device is full, and UMDR's network.
group_batches() {
  for clips in 1 16 32; do
    part "step_$clips" 80 "$python" -m benchmarks.step --size 224 --batch "$clips" --steps 7 \
      --forms chosen_bf16 uncompiled_bf16 --json "$out/step_$clips.json"
  done
  for frames in 16 32; do
    part "step_umdr_$frames" 130 "$python" -m benchmarks.step --network umdr --frames "$frames" \
      --size 224 --batch 16 --steps 7 --forms straightforward_tf32 uncompiled_bf16 chosen_bf16 \
      --json "$out/step_umdr_$frames.json"
  done
}

# Files in the page cache stage by stage, and cold ones: of RGB and RGB-D all, of depth the whole.
group_loader() {
  part loader 170 "$python" -m benchmarks.loader --data "$data" --batch 16 --clips 192 --windows 3 \
    --only 'cuda/*/rgb/*/warm' 'cuda/*/rgbd/*/warm' 'cuda/*/*/motion/*' --json "$out/loader.json"
  part loader_memory 25 "$python" -m benchmarks.loader --data "$data/small" --memory-curve 2000 \
    --clips 16 --size 64 --frames 8 --batch 4 --rgb-size 96x72 --depth-size 96x72 \
    --json "$out/loader_memory.json" --plot "$out/loader_memory.png"
}

# Training: every network from every source, uncompiled, as compiling all takes longer than
# measuring them; the first network compiled too.
group_training() {
  part end_to_end 180 "$python" -m benchmarks.end_to_end --data "$data" --clips 192 --windows 3 \
    --networks decoupled umdr r3d_18 --sources frames videos pack --compile off \
    --json "$out/end_to_end.json"
  part end_to_end_compiled 160 "$python" -m benchmarks.end_to_end --data "$data" --clips 192 \
    --windows 3 --networks decoupled --sources frames videos --json "$out/end_to_end_compiled.json"
}

# The demo as `make demo` runs it where there is a GPU.
group_demo() {
  part sample_data 40 "$python" -m pipelines.synthetic "$data/sample"
  part demo 400 "$python" -m torch.distributed.run --standalone --nproc_per_node=1 \
    engine/train.py --config configs/demo_rgb_gpu.yaml data.root="$data/sample" \
    train.run_dir="$data/demo"
  part demo_result 10 grep -E '"(top1|device|clips_per_s|data_wait)": .*' "$data/demo/result.json"
}

if [ -z "${DRY_RUN:-}" ]; then
  mkdir -p "$out" || exit 1
  data=$(mktemp -d) || exit 1
  trap 'rm -rf "$data"' EXIT
else
  data=DATA
fi

[ $# -gt 0 ] || set -- tests step batches loader training demo
for group; do
  declare -F "group_$group" > /dev/null || {
    echo "error: $group: no such group; take of tests step batches loader training demo" >&2
    exit 2
  }
  printf '\n=== %s\n' "$group"
  "group_$group"
done

printf '\n%s parts failed; results in %s\n' "$failed" "$out"
exit "$failed"
