#!/usr/bin/env bash
# All tests marked gpu and all benchmarks on a machine with an NVIDIA GPU: groups in the order of
# their worth, each less than nine minutes, all of them less than 25.
#
#     bash benchmarks/run_gpu.sh                 # from the repository root: all groups but demo
#     bash benchmarks/run_gpu.sh tests step      # some of: tests step loader training rest demo
#     DRY_RUN=1 bash benchmarks/run_gpu.sh       # print the commands
#     TINY=1 bash benchmarks/run_gpu.sh          # act it out on a CPU, in minutes
#
# All results, logs too, are in one archive, $OUT/gpu_GROUPS.tar.gz (OUT: benchmarks/results/gpu),
# which is written anew after each part. $PYTHON (python3) needs torch, DALI and this repository's
# other packages; nothing is downloaded. Each part has a time limit of its own: one that fails or
# hangs does not stop the rest, and keeps what it has found out until then. The exit status is the
# number of parts that failed. TINY: what only a GPU can do is a row that says so, and its part
# counts as failed.

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-benchmarks/results/gpu}
python=${PYTHON:-python3}
failed=0
running=

# What TINY makes small.
if [ -z "${TINY:-}" ]; then
  device=cuda
  patience=1
  tests=(env REQUIRE_CUDA=1 "$python" -m pytest -v --numprocesses 6)
  step=(--size 224 --batch 16 --steps 5 --profile)
  umdr=()
  loader=(--batch 16 --clips 192 --windows 3)
  training=(--clips 192 --windows 3)
  curve=(--memory-curve 2000)
  sample=()
  demo=configs/demo_rgb_gpu.yaml
else
  device=cpu
  patience=5  # a part of two cores takes longer than one of a GPU
  tests=("$python" -m pytest -v --numprocesses 2)
  small=(--size 32 --width 8 --dim 64 --warmup 1)
  step=("${small[@]}" --frames 8 --num-blocks 1 --batch 2 --steps 2 --profile)
  umdr=(--num-blocks 3)
  loader=(--batch 2 --clips 8 --windows 1 --size 32 --frames 8 --rgb-size 96x72 --depth-size 96x72)
  training=("${loader[@]}")
  curve=(--memory-curve 40)
  sample=(--clips 16 --eval-clips 8)
  demo=configs/demo_rgb.yaml
fi
# Where one batch is asked for after another: the last --batch counts.
batches=(8 32)
[ -z "${TINY:-}" ] || batches=(1 3)

# part NAME SECONDS COMMAND...: runs it, output to NAME.log and its end to the terminal.
part() {
  local name=$1 limit=$(($2 * patience)) status
  shift 2
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
  [ -n "${DRY_RUN:-}" ] && return
  timeout --kill-after=10 "$limit" "$@" > "$results/$name.log" 2>&1 &
  running=$!
  wait "$running"  # not in the foreground, where a signal would wait for the part's end
  status=$?
  tail -n 60 "$results/$name.log"
  printf '== %s: exit status %s after %s s in all\n' "$name" "$status" "$SECONDS" |
    tee -a "$results/parts.log"
  [ "$status" -eq 0 ] || failed=$((failed + 1))
  archive
}

# Under another name first: what is there is always whole.
archive() {
  tar -C "$work" -czf "$out/.archive" results && mv "$out/.archive" "$out/gpu_$groups.tar.gz"
}

# Tests of some files, or of all but those, those of one group of six side by side. Each is written
# to the log when it ends, and one that hangs ends alone.
gpu_tests() {
  part "$1" "$2" "${tests[@]}" -m gpu --timeout 100 --timeout-method thread --durations 20 \
    --continue-on-collection-errors --junitxml "$results/$1.xml" "${@:3}"
}

# What every other figure hangs on.
core=(tests/test_loader.py tests/test_graph.py tests/test_sources.py tests/test_video_graph.py
      tests/test_loop.py tests/test_timing.py tests/test_cuda_graph.py)

# Versions and what this machine lacks; then the loader and the step by their tests.
group_tests() {
  part machine 20 bash -c 'nvidia-smi; "$0" -c "
import ctypes, sys, cv2, numpy, torch, nvidia.dali
try:
    ctypes.CDLL(\"libnvcuvid.so.1\")
except OSError as error:
    print(\"no NVDEC:\", error)
print(\"python\", sys.version.split()[0], \"torch\", torch.__version__, \"CUDA\", torch.version.cuda,
      \"cuDNN\", torch.backends.cudnn.version(), \"DALI\", nvidia.dali.__version__,
      \"OpenCV\", cv2.__version__, \"NumPy\", numpy.__version__)
sys.exit(not torch.cuda.is_available())"' "$python"
  part doctor 60 "$python" -m engine.doctor
  gpu_tests tests 180 "${core[@]}"
}

# The step as it is trained, with what is likely to be gained first, and the kernels that hold it.
group_step() {
  part step 200 "$python" -m benchmarks.step "${step[@]}" --json "$results/step.json" --forms \
    chosen_bf16 gathered_pool_bf16 uncompiled_bf16 straightforward_tf32
}

# Files in the page cache: stages of frame folders and the hardware decoder's share; then every
# source, and videos by threads. Cases of a part share the GPU's memory, 4 GB each.
group_loader() {
  part loader 100 "$python" -m benchmarks.loader --data "$data" "${loader[@]}" \
    --only "$device/frames*/rgb/*/warm" --json "$results/loader.json"
  part loader_sources 120 "$python" -m benchmarks.loader --data "$data" "${loader[@]}" \
    --only "$device/*/rgb/motion/warm" "$device/pack/rgbd/motion/warm" \
    --json "$results/loader_sources.json"
}

# The network compiled, from every source, beside its loader and its step.
group_training() {
  part end_to_end 280 "$python" -m benchmarks.end_to_end --data "$data" "${training[@]}" \
    --networks decoupled --sources frames videos pack --json "$results/end_to_end.json"
}

# All other tests, other batches and networks, and what is to be decided by measuring.
group_rest() {
  local clips frames
  gpu_tests tests_rest 130 tests "${core[@]/#/--ignore=}"
  part step_tried 180 "$python" -m benchmarks.step "${step[@]}" --json "$results/step_tried.json" \
    --forms chosen_bf16 gathered_joined_bf16 cudnn_benchmark_bf16 compiled_graphed graphed \
    uncompiled_gathered_joined_bf16 uncompiled_cudnn_benchmark_bf16 straightforward_bf16 chosen \
    straightforward
  for clips in "${batches[@]}"; do
    part "step_$clips" 40 "$python" -m benchmarks.step "${step[@]}" --batch "$clips" \
      --forms chosen_bf16 uncompiled_bf16 --json "$results/step_$clips.json"
  done
  for frames in 16 32; do
    part "step_umdr_$frames" 40 "$python" -m benchmarks.step "${step[@]}" "${umdr[@]}" \
      --network umdr --frames "$frames" --forms chosen_bf16 straightforward_tf32 \
      --json "$results/step_umdr_$frames.json"
  done
  part loader_memory 25 "$python" -m benchmarks.loader --data "$data/small" "${curve[@]}" \
    --clips 16 --size 64 --frames 8 --batch 4 --rgb-size 96x72 --depth-size 96x72 \
    --json "$results/loader_memory.json" --plot "$results/loader_memory.png"
}

# The demo as `make demo` runs it where there is a GPU.
group_demo() {
  part sample_data 40 "$python" -m pipelines.synthetic "$data/sample" "${sample[@]}"
  part demo 400 "$python" -m torch.distributed.run --standalone --nproc_per_node=1 \
    engine/train.py --config "$demo" data.root="$data/sample" train.run_dir="$data/demo"
  part demo_result 10 grep -E '"(top1|device|clips_per_s|data_wait)": .*' "$data/demo/result.json"
}

[ $# -gt 0 ] || set -- tests step loader training rest
for group; do
  declare -F "group_$group" > /dev/null || {
    echo "error: $group: no such group; take of tests step loader training rest demo" >&2
    exit 2
  }
done
groups=$(IFS=_; echo "$*")

if [ -z "${DRY_RUN:-}" ]; then
  mkdir -p "$out" || exit 1
  work=$(mktemp -d) || exit 1
  trap 'rm -rf "$work"' EXIT
  trap 'kill "$running"; archive; exit 143' INT TERM
  mkdir "$work/results"
  # One compiler cache: what one part has compiled is not compiled again by the next. Memory in
  # pieces that grow: forms of several gigabytes follow each other.
  export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
  export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
else
  work=WORK
fi
results=$work/results
data=$work/data

for group; do
  printf '\n=== %s\n' "$group"
  "group_$group"
done

printf '\n%s parts failed; results in %s\n' "$failed" "$out/gpu_$groups.tar.gz"
exit "$failed"
