#!/usr/bin/env bash
# The CUDA core on a machine with a GPU and no network, within ten minutes.
#
#   benchmarks/gpu_check.sh --prepare [3.12]   where there is a network: fills .gpu/, to be carried
#                                              along, for this version of Python
#   benchmarks/gpu_check.sh OUTPUT             there: builds, runs the gpu tests, the benchmarks and
#                                              compute-sanitizer; logs and results go to OUTPUT
#   benchmarks/gpu_check.sh --rehearse OUTPUT  anywhere, after --prepare: the same steps without a GPU, to
#                                              find what is wrong with the steps themselves
#
# The GPU machine must have nvcc, a C++ compiler, CMake, ninja and a Python with a CUDA build of
# torch, pybind11, pytest and hypothesis. PYTHON names another Python than python3, ARCHITECTURES
# others than the GPU's own.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
carried=$PWD/.gpu
[ $# -ge 1 ] || { sed -n '2,15s/^# \?//p' "$0"; exit 2; }

if [ "$1" = --prepare ]; then
  set -e
  version=$(sed -n 's/^set(ducc0_version \(.*\))$/\1/p' cmake/ducc0.cmake)
  rm -rf "$carried"
  SKBUILD_WHEEL_CMAKE=0 "$python" -m pip download --quiet --no-deps --no-binary ducc0 \
    --no-build-isolation --dest "$carried" "ducc0==$version"
  tar -xzf "$carried/ducc0-$version.tar.gz" -C "$carried"
  rm "$carried/ducc0-$version.tar.gz"
  mv "$carried/ducc0-$version" "$carried/ducc0"
  # What the package imports and images for training often lack.
  "$python" -m pip download --quiet --only-binary=:all: --python-version "${2:-3.12}" \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$carried" pydantic
  # compute-sanitizer, which images for training lack too.
  "$python" -m pip download --quiet --no-deps --dest "$carried/sanitizer" nvidia-cuda-sanitizer-api
  du -sh "$carried"
  exit
fi

rehearse=""
device=cuda size=full architectures=${ARCHITECTURES:-native} emulation=OFF patience=1
if [ "$1" = --rehearse ]; then
  rehearse=yes
  device=cpu size=quick architectures=${ARCHITECTURES:-75-real} emulation=ON patience=4
  shift
fi
mkdir -p "$1"
out=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$out/summary.txt"
deadline=$((570 * patience))
[ -z "$rehearse" ] || tee "$out/summary.txt" <<TEXT
REHEARSAL: no GPU is used. The kernels are compiled for $architectures and tested in emulation, tests marked gpu
are collected and skipped, the benchmarks time the CPU, compute-sanitizer reads its options and runs nothing.
What passes here says that the steps are put together right, and nothing about a GPU.
TEXT

# step LIMIT NAME COMMAND...: runs it for LIMIT seconds at most; its output goes to NAME.log
step() {
  local limit=$(($1 * patience)) name=$2 start=$SECONDS status=0
  shift 2
  ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
  if ((limit > 5)); then
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  else
    status="no time left"
  fi
  printf '%-28s %-8s %4d s  %s\n' "$name" "$([ "$status" = 0 ] && echo passed || echo "FAILED ($status)")" \
    $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" 2>/dev/null | cut -c 1-120)" | tee -a "$out/summary.txt"
  [ "$status" = 0 ]
}

build() {
  set -ex
  nvidia-smi || true
  PATH=$PATH:/usr/local/cuda/bin nvcc --version
  cmake -S . -B "$work/build" -G Ninja -DPYSOFTQ_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$architectures" -DPYSOFTQ_CUDA_EMULATION="$emulation" \
    -DPYSOFTQ_DUCC0_DIR="$carried/ducc0" -DPython_EXECUTABLE="$(command -v "$python")"
  cmake --build "$work/build"
  cmake --install "$work/build" --prefix "$work/site"
  cp -R pysoftq/. "$work/site/pysoftq"
  cp -R analysis "$work/site/pysoftq/analysis"
  # Away from the source tree, which Python would find before what is built.
  cp -R pyproject.toml tests benchmarks "$work"
  "$python" -c "import pydantic" ||
    "$python" -m pip install --no-index --no-deps --target "$work/site" "$carried"/*.whl
  command -v compute-sanitizer ||
    "$python" -m pip install --no-index --no-deps --target "$work/sanitizer" "$carried"/sanitizer/*.whl
  cd "$work"
  "$python" -c "import pysoftq; pysoftq.show_config()"
}

sanitize() {
  local options=(--tool "$1" --kernel-name kns=softq --error-exitcode 9)
  local tests=("$python" -m pytest -q -m gpu -p no:cacheprovider tests/interaction/test_cuda.py
    -k 'not many_chunks and not half_precision and not order_of_the_current')
  if [ -n "$rehearse" ]; then
    compute-sanitizer "${options[@]}" --version && "${tests[@]}"
  else
    compute-sanitizer "${options[@]}" "${tests[@]}"
  fi
}

export PYTHONPATH=$work/site PATH=$PATH:/usr/local/cuda/bin:$work/sanitizer/nvidia/cu13/compute-sanitizer
export -f build sanitize
export out work carried python rehearse architectures emulation
step 300 build bash -c build || { tail -n 30 "$out/build.log"; exit 1; }
cd "$work"
# No other files: they import what this machine need not have.
mapfile -t files < <(grep -rl mark.gpu tests --include='test_*.py')
step 120 tests "$python" -m pytest -q -m gpu -p no:cacheprovider "${files[@]}"
[ -z "$rehearse" ] || step 120 emulation "$python" -m pytest -q -p no:cacheprovider tests/interaction/test_cuda.py
for case in force_step density bandwidth pairs training_step potential; do
  step 60 "benchmark-$case" "$python" -m benchmarks --device "$device" --size "$size" --output "$out" "$case"
done
for tool in memcheck racecheck synccheck; do
  step 60 "$tool" bash -c "sanitize $tool"
done
cat "$out/$device"-*.md 2>/dev/null
cat "$out/summary.txt"
! grep -q FAILED "$out/summary.txt"
