#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU, in nine minutes, with or without a network.
#
#   benchmarks/gpu_check.sh [OPTION...] [OUTPUT]
#     OUTPUT             folder of the results; default: $OUT, else ./gpu-check
#     --budget SECONDS   time for everything (540)
#     --stages LIST      some of versions,smoke,memcheck,tests,quick,rest,races,full, separated by commas (all)
#     --rehearse         without a GPU: the kernels in emulation, a little of each stage
#   benchmarks/gpu_check.sh --prepare [3.12]
#     where there is a network: fills .gpu/, to be copied along with the tree, for a machine without one that
#     has this version of Python. Prebuilds the kernels if PYTHON is that version and there is an nvcc.
#
# OUTPUT holds summary.txt and gpu-check.tar.gz, both written anew after each step, and while a step runs what
# it writes: running.*. INT or TERM ends the step in progress and packs what there is. Steps that run out of time
# get INT, then KILL. Exit code 0: each stage passed or was skipped for a missing tool; 1: it did not.
#
# Needed: a Python with a CUDA build of torch, pytest, hypothesis and what pysoftq imports; for the build, unless
# pysoftq is installed or prebuilt, nvcc, a C++ compiler, CMake, ninja and pybind11. Variables: PYTHON (python3),
# ARCHITECTURES of the kernels (the GPU's own; 90-real for --prepare).
# shellcheck disable=SC2329 # stages, and what a step runs in a shell, are called by name
set -uo pipefail
unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
python=${PYTHON:-python3}
carried=$root/.gpu
all_stages=(versions smoke memcheck tests quick rest races full)
targets_first=(force_step training_step bandwidth density pairs potential sorting memory)
smoke_cases=(sequence step segments pieces density pairs potential fft layers direct)

die() {
  printf 'gpu_check.sh: %s\n' "$*" >&2
  exit 2
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0"; }

# ---------------------------------------------------------------------------------- what is carried
# Of all that the kernels are compiled from.
checksum() {
  (cd "$root" && find CMakeLists.txt cmake cpp -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
}

# configure_and_build FOLDER CUDA ARCHITECTURES EMULATION
configure_and_build() {
  local ducc0=()
  [ ! -d "$carried/ducc0" ] || ducc0=(-DPYSOFTQ_DUCC0_DIR="$carried/ducc0")
  cmake -S "$root" -B "$1" -G Ninja -DPYSOFTQ_CUDA="$2" -DCMAKE_CUDA_ARCHITECTURES="$3" \
    -DPYSOFTQ_CUDA_EMULATION="$4" "${ducc0[@]}" -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build "$1"
}

prepare() {
  local wanted=${1:-3.12} version work download=("$python" -m pip download --quiet --disable-pip-version-check)
  set -e
  version=$(sed -n 's/^set(ducc0_version \(.*\))$/\1/p' "$root/cmake/ducc0.cmake")
  rm -rf "$carried"
  mkdir "$carried"
  SKBUILD_WHEEL_CMAKE=0 "${download[@]}" --no-deps --no-binary ducc0 --no-build-isolation --dest "$carried" \
    "ducc0==$version"
  tar -xzf "$carried/ducc0-$version.tar.gz" -C "$carried"
  rm "$carried/ducc0-$version.tar.gz"
  mv "$carried/ducc0-$version" "$carried/ducc0"
  # What the package and its tests import and images for training often lack; taken where it is missing.
  download+=(--only-binary=:all: --dest "$carried/wheels")
  for number in 17 24 27 28 34; do download+=(--platform "manylinux_2_${number}_x86_64"); done
  download+=(--platform manylinux2014_x86_64 --python-version "$wanted")
  "${download[@]}" pydantic
  for package in constriction lazy-loader optuna colorlog alembic mako sqlalchemy greenlet hypothesis \
    sortedcontainers pytest-timeout; do
    "${download[@]}" --no-deps "$package" || echo "not carried: $package"
  done
  "$python" -m pip download --quiet --no-deps --dest "$carried/sanitizer" nvidia-cuda-sanitizer-api ||
    echo "not carried: compute-sanitizer"
  if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$wanted" ]; then
    echo "not prebuilt: $python is not Python $wanted, so the kernels will be built there"
  elif ! PATH=$PATH:/usr/local/cuda/bin command -v nvcc >/dev/null; then
    echo "not prebuilt: no nvcc"
  else
    work=$(mktemp -d)
    configure_and_build "$work" ON "${ARCHITECTURES:-90-real}" OFF
    mkdir "$carried/prebuilt"
    cp "$work"/_c*.so "$carried/prebuilt"
    checksum >"$carried/prebuilt/checksum"
    rm -rf "$work"
  fi
  du -sh "$carried"
}

# ---------------------------------------------------------------------------------------- arguments
rehearse='' budget='' output='' chosen=${all_stages[*]}
while [ $# -gt 0 ]; do
  case $1 in
    --prepare) prepare "${2:-}"; exit ;;
    --rehearse) rehearse=yes ;;
    --budget | --stages)
      [ $# -ge 2 ] || die "$1 needs a value"
      if [ "$1" = --budget ]; then budget=$2; else chosen=${2//,/ }; fi
      shift
      ;;
    -h | --help) usage; exit ;;
    -*) die "unknown option $1; --help lists them" ;;
    *)
      [ -z "$output" ] || die "one folder for the results, got '$output' and '$1'"
      output=$1
      ;;
  esac
  shift
done
# A rehearsal waits longer: it runs on machines that are busy, where running out of time says nothing.
patience=${rehearse:+5} patience=${patience:-1}
budget=${budget:-$((540 * patience))}
[[ $budget =~ ^[0-9]+$ && $budget -ge 30 ]] || die "\`--budget\` must be >= 30 seconds, got '$budget'"
for stage in $chosen; do
  [[ " ${all_stages[*]} " == *" $stage "* ]] || die "unknown stage '$stage': expected some of ${all_stages[*]}"
done
command -v "$python" >/dev/null || die "no $python; set PYTHON to a Python that has torch"
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/${python##*/}
out=${output:-${OUT:-gpu-check}}
if ! { mkdir -p "$out" && [ -w "$out" ]; } 2>/dev/null; then
  [ -z "$output" ] || die "cannot write to $out; pass another folder"
  out=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check-XXXXXX") || die "cannot write to $out; pass a folder"
fi
out=$(cd "$out" && pwd)
work=$(mktemp -d) || die "no folder for temporary files; set TMPDIR"
rm -f "$out"/summary.txt "$out"/gpu-check.tar.gz "$out"/running.*
echo "results: $out"

# ---------------------------------------------------------------------------------- stages and steps
pack=$work/gpu-check site=$work/site tree=$work/tree
mkdir -p "$pack/logs" "$pack/results" "$site" "$tree" "$work/empty" "$work/tmp"
: >"$pack/steps.txt"
grace=8    # seconds from INT to KILL
reserve=12 # for the grace of the last step and the packing
device=cuda module=_cuda blocked='' child='' stopped='' stage='' stage_start=0 stage_end=0
[ -z "$rehearse" ] || { device=cpu module=_cuda_emulated grace=3 reserve=6; }
declare -A state=() detail=() took=() steps=() passed=()
# The most seconds of each stage. In the budget most take less, and what they leave is the next one's.
declare -A cap=([versions]=240 [smoke]=150 [memcheck]=90 [tests]=160 [quick]=120 [rest]=75 [races]=90 [full]=9999)
declare -A rank=([skipped]=1 [passed]=2 [out of time]=3 [interrupted]=4 [FAILED]=5)

# record STATE DETAIL: a stage is what the worst of its steps is, and tells the first such detail
record() {
  local before=${state[$stage]:-}
  took[$stage]=$((SECONDS - stage_start))
  if [ -z "$before" ] || ((${rank[$1]} > ${rank[$before]})); then
    state[$stage]=$1 detail[$stage]=$2
  fi
}

skip() { record skipped "$1"; }

# The last line of a log that is the command's own word, not about how it was ended.
last_line() {
  grep -vE '^([[:space:]]|$|Traceback|KeyboardInterrupt|timeout: )' "$1" | tail -n 1 | sed -E 's/^=+ | =+$//g'
}

# The line of a log that says most of why its step failed.
first_failure() {
  local pattern
  for pattern in '^(FAILED|ERROR) ' '^========= [A-Z][a-z]' ' (FAILED|ERROR)( |$)' '^E  ' '[Ee]rror(:| at | while )'; do
    grep -m 1 -E "$pattern" "$1" && return
  done
  last_line "$1"
}

# verdict CODE LOG SECONDS: the state, a tab and the detail of a step that has ended, with so many seconds left
verdict() {
  local code=$1 log=$2 left=$3 last reason
  last=$(last_line "$log")
  if [ -n "$stopped" ]; then
    printf 'interrupted\tby %s, after: %s' "$stopped" "$last"
  elif [ "$code" = 0 ] && [[ $last =~ [0-9]+\ skipped ]] && [[ ! $last =~ [0-9]+\ passed ]]; then
    reason=$(grep -m 1 '^SKIPPED' "$log" || echo "$last")
    printf 'skipped\t%s' "$reason"
  elif [ "$code" = 5 ]; then
    printf 'skipped\tno such tests in this file'
  elif [ "$code" = 0 ]; then
    [[ $last =~ [0-9]\ (checks\ )?passed ]] || last='' # of others, the last line says nothing
    printf 'passed\t%s' "$last"
  elif grep -qi 'device not supported' "$log"; then
    printf 'skipped\tcompute-sanitizer: device not supported'
  elif [ "$code" = 124 ] || { [ "$code" = 137 ] && ((left <= 0)); }; then
    if grep -qE '^(FAILED|ERROR) | (FAILED|ERROR)( |$)' "$log"; then
      printf 'FAILED\t%s (then out of time)' "$(first_failure "$log")"
    else
      printf 'out of time\tafter: %s' "$last"
    fi
  else
    ((code <= 128)) || reason="ended by signal $((code - 128)): "
    printf 'FAILED\t%s%s' "${reason:-}" "$(first_failure "$log")"
  fi
}

# step NAME LIMIT COMMAND...: what it prints goes to logs/NAME.log; true if it passed. Its limit in seconds is
# cut to what the stage and the budget leave.
step() {
  local name=$stage-$1 limit=$(($2 * patience)) start=$SECONDS code line outcome
  shift 2
  [ -z "$stopped" ] || exit
  steps[$stage]=$((${steps[$stage]:-0} + 1))
  ((limit <= stage_end - SECONDS)) || limit=$((stage_end - SECONDS))
  ((limit <= budget - reserve - SECONDS)) || limit=$((budget - reserve - SECONDS))
  if ((limit < 3)); then
    record "out of time" "before $name"
    printf '%-26s not begun: out of time\n' "$name" | tee -a "$pack/steps.txt"
    return 1
  fi
  set -m # a process group of its own, in which INT is not ignored
  timeout --signal=INT --kill-after="$grace" "$limit" "$@" >"$out/running.log" 2>&1 </dev/null &
  child=$!
  set +m
  [ -z "$stopped" ] || kill -s INT "$child" 2>/dev/null
  wait "$child" 2>/dev/null
  code=$?
  while kill -s 0 "$child" 2>/dev/null; do # the wait was cut short by a signal
    wait "$child" 2>/dev/null
    code=$?
  done
  kill -s KILL -- "-$child" 2>/dev/null # what it has left behind
  child=''
  line=$(verdict "$code" "$out/running.log" $((limit - SECONDS + start)) | tr -d '\000-\010\013-\037')
  outcome=${line%%$'\t'*} line=${line#*$'\t'}
  [ "$outcome" != passed ] || passed[$stage]=$((${passed[$stage]:-0} + 1))
  record "$outcome" "$([ "$outcome" = passed ] || echo "$name: ")$line"
  keep "$name"
  printf '%-26s %-11s %4d s  %.150s\n' "$name" "$outcome" $((SECONDS - start)) "$line" | tee -a "$pack/steps.txt"
  publish
  [ -z "$stopped" ] || exit
  [ "$outcome" = passed ]
}

# keep NAME: moves what a step has written into what is packed; of a very long log the ends
keep() {
  local log=$pack/logs/$1.log most=1000000 size file
  size=$(wc -c <"$out/running.log")
  if ((size > 2 * most)); then
    { head -c "$most" && printf '\n[... %d bytes left out ...]\n' $((size - 2 * most)); } <"$out/running.log" >"$log"
    tail -c "$most" "$out/running.log" >>"$log"
  else
    cp "$out/running.log" "$log"
  fi
  for file in "$out"/running.json "$out"/running.md; do
    [ ! -f "$file" ] || mv "$file" "$pack/results/$1.${file##*.}"
  done
  [ ! -f "$pack/results/$1.json" ] || compare
  rm -f "$out"/running.* "$out"/.running.*
}

# Compares what has been measured with the targets; long benchmarks come after short ones, and count.
compare() {
  local file files=()
  for file in "$pack"/results/quick-*.json "$pack"/results/full-*.json; do
    [ ! -f "$file" ] || files+=("$file")
  done
  "$python" -m benchmarks.targets "${files[@]}" >"$work/targets.txt" 2>&1
}

summary() {
  local one text
  echo "pysoftq GPU check, $(date '+%Y-%m-%d %H:%M'), commit $commit, $SECONDS of $budget s"
  [ -z "$rehearse" ] || echo "REHEARSAL without a GPU: it shows that the steps run, and nothing about any GPU."
  grep -hE '^(device|driver|memory pools|nvidia-smi|nvcc|python|torch|extension|missing): ' \
    "$pack"/logs/versions-{probe,packages,configuration,extension}.log 2>/dev/null | cut -c 1-150
  echo
  for one in "${all_stages[@]}"; do
    text=${detail[$one]:-}
    if ((${steps[$one]:-0} > 1)); then
      [ "${state[$one]}" != passed ] || text=''
      text="${passed[$one]:-0} of ${steps[$one]} steps passed${text:+; $text}"
    fi
    printf '%-9s %-11s %4s s  %.150s\n' "$one" "${state[$one]:-not begun}" "${took[$one]:-0}" "$text"
  done
  printf '\nTargets on a GPU: measured, target, quantity\n'
  cat "$work/targets.txt" 2>/dev/null
}

# Writes the summary and the archive anew; each is the old one or the new one, never half of it.
publish() {
  (summary) >"$pack/summary.txt" # in a shell of its own, whose failure is not the end
  cp "$pack/summary.txt" "$out/.summary.tmp" && mv "$out/.summary.tmp" "$out/summary.txt"
  tar -czf "$out/.archive.tmp" -C "$work" gpu-check && mv "$out/.archive.tmp" "$out/gpu-check.tar.gz"
}

finish() {
  local code=$?
  trap '' INT TERM HUP
  [ -z "$child" ] || kill -s KILL -- "-$child" 2>/dev/null
  publish
  rm -rf "$out"/running.* "$out"/.*.tmp "$work"
  echo
  cat "$out/summary.txt"
  echo "results: $out"
  case $stopped in INT) code=130 ;; TERM) code=143 ;; HUP) code=129 ;; esac
  exit "$code"
}

# The first signal lets the step sum up, as timeout passes it on; a second one does not wait for it.
stop() {
  if [ -z "$child" ]; then
    :
  elif [ -z "$stopped" ]; then
    kill -s INT "$child" 2>/dev/null
  else
    kill -s KILL -- "-$child" 2>/dev/null
  fi
  stopped=$1
}

# ----------------------------------------------------------------------------- versions, the package
# Prints the machine and its versions; fails without a device, which a rehearsal does not mind.
probe() {
  local code
  uname -a
  nproc
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi
    echo "nvidia-smi: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)"
  else
    echo "nvidia-smi: not found"
  fi
  if command -v nvcc >/dev/null; then
    echo "nvcc: $(nvcc --version | grep release) ($(command -v nvcc))"
  else
    echo "nvcc: not found"
  fi
  echo "python: $("$python" -VV) ($(command -v "$python"))"
  "$python" "$tree/benchmarks/gpu_probe.py"
  code=$?
  [ "$code" = 0 ] || [ -n "$rehearse" ] || echo "ERROR no CUDA device: the line 'device' says why"
  [ -n "$rehearse" ] || return "$code"
}

# Installs what is missing here of what --prepare has fetched; then tells what is missing still.
unpack() {
  local wheel name
  [ -d "$carried" ] || echo "nothing is carried"
  for wheel in "$carried"/wheels/*.whl; do
    [ -f "$wheel" ] || continue
    name=${wheel##*/}
    name=${name%%-*}
    "$python" -c 'import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])' "$name" 2>/dev/null ||
      "$python" -m pip install --quiet --no-index --no-deps --target "$work/deps" "$wheel" ||
      echo "not installed: $name"
  done
  command -v compute-sanitizer >/dev/null || [ ! -d "$carried/sanitizer" ] ||
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/sanitizer" "$carried"/sanitizer/*.whl
  "$python" - "$tree/pyproject.toml" <<'PYTHON'
import importlib.metadata, pathlib, re, sys

block = re.search(r"^dependencies = \[\n(.*?)^\]", pathlib.Path(sys.argv[1]).read_text("utf-8"), re.M | re.S)
missing = []
for name in re.findall(r'^ *"([\w-]+)', block[1], re.M) + ["pytest", "hypothesis"]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
needed = [name for name in ("torch", "numpy", "lazy-loader") if name in missing]
if missing:
    print("missing:", ", ".join(missing))
if needed:
    raise SystemExit(f"ERROR nothing runs without {', '.join(needed)}")
PYTHON
}

# adopt WHERE FOLDER: puts the extensions in the folder into the site; true if they load with this Python
adopt() {
  rm -f "$site"/pysoftq/_c*.so
  cp -p "$2"/_core.*.so "$2/$module".*.so "$site/pysoftq/" 2>/dev/null || return 1
  "$python" -c "
import pysoftq._core, pysoftq.$module as kernels, sys, time, os
date = time.strftime('%Y-%m-%d %H:%M', time.localtime(os.path.getmtime(kernels.__file__)))
print(f'extension: {sys.argv[1]}, of {date}; devices: {kernels.device_count()}')" "$1"
}

# The extensions: carried along, in the tree, installed, or built here.
extension() {
  local installed cuda=ON
  if [ -d "$carried/prebuilt" ]; then
    if [ "$(cat "$carried/prebuilt/checksum" 2>/dev/null)" != "$(checksum)" ]; then
      echo "not used: .gpu/prebuilt is of other sources"
    else
      adopt prebuilt "$carried/prebuilt" && return
    fi
  fi
  adopt "in the tree" "$root/pysoftq" && return
  installed=$(cd / && PYTHONPATH=$python_path "$python" -c "
import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec('pysoftq').origin).parent)" 2>/dev/null)
  if [ -n "$installed" ]; then
    if diff -rq -x __pycache__ -x '*.so' -x '*.pyi' -x analysis "$installed" "$tree/pysoftq"; then
      adopt "installed in $installed" "$installed" && return
    else
      echo "not used: $installed is of other sources"
    fi
  fi
  if ! command -v nvcc >/dev/null; then
    if [ -z "$rehearse" ]; then
      echo "ERROR no extension: none is carried, in the tree or installed for this Python, and there is no nvcc"
      return 1
    fi
    cuda=OFF
  fi
  if [ -n "$rehearse" ]; then
    configure_and_build "$work/build" "$cuda" "${ARCHITECTURES:-90-real}" ON || return
  else
    configure_and_build "$work/build" ON "${ARCHITECTURES:-native}" OFF || return
  fi
  adopt "built here in $SECONDS s" "$work/build"
}

# Torch, the device as it sees it, and how pysoftq was built.
configuration() {
  "$python" -c "
import torch
print(f'torch: {torch.__version__}, CUDA {torch.version.cuda}, devices {torch.cuda.device_count()}')
if '$rehearse' == '' and not torch.cuda.is_available():
    raise SystemExit('ERROR torch finds no CUDA device')
import pysoftq
pysoftq.show_config()"
}

stage_versions() {
  local what
  step probe 60 bash -c probe || { blocked="no CUDA device"; return; }
  step packages 60 bash -c unpack || { blocked="missing packages"; return; }
  for what in extension configuration; do
    step "$what" 240 bash -c "$what" || { blocked="no working $what"; return; }
  done
}

# ------------------------------------------------------------------------------------ the other stages
stage_smoke() {
  local case
  if [ -n "$rehearse" ]; then
    step sequence 60 "$python" -m benchmarks.gpu_smoke --emulated sequence
    return
  fi
  for case in "${smoke_cases[@]}" memory; do
    step "$case" 45 env CUDA_LAUNCH_BLOCKING=1 "$python" -m benchmarks.gpu_smoke "$case"
  done
  step graph 45 "$python" -m benchmarks.gpu_smoke graph # a capture must not wait for its launches
}

# sanitize TOOL LIMIT: the smoke in one process under compute-sanitizer, whose start takes the longest. Without
# torch's cache, so that each array ends where its memory does.
sanitize() {
  local options=(--tool "$1" --kernel-name kns=softq --error-exitcode 9 --launch-timeout 60)
  command -v compute-sanitizer >/dev/null || { skip "no compute-sanitizer on the PATH or in .gpu/"; return; }
  if [ -n "$rehearse" ]; then
    step "$1" "$2" compute-sanitizer "${options[@]}" --version # reads its options, runs nothing
  else
    step "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" \
      "$python" -m benchmarks.gpu_smoke --size 200001 "${smoke_cases[@]}"
  fi
}

stage_memcheck() { sanitize memcheck 90; }

stage_races() {
  sanitize racecheck 60
  sanitize synccheck 45
}

# pytest_step NAME LIMIT ARGUMENTS...: warnings are no errors, and a test has a minute
pytest_step() {
  local name=$1 limit=$2 per_test=()
  shift 2
  ! "$python" -c 'import pytest_timeout' 2>/dev/null || per_test=(--timeout 60)
  step "$name" "$limit" "$python" -m pytest -v --tb=short -W default -p no:cacheprovider --rootdir "$tree" \
    -c "$tree/pyproject.toml" -o faulthandler_timeout=75 "${per_test[@]}" "$@"
}

stage_tests() {
  local file first=tests/interaction/test_cuda.py
  "$python" -c 'import pytest, hypothesis' 2>/dev/null || { skip "no pytest or no hypothesis"; return; }
  if [ -n "$rehearse" ]; then
    pytest_step test_cuda 60 "$tree/$first" -k "no_longer_fits and emulated"
    return
  fi
  pytest_step test_cuda 100 -m gpu "$tree/$first"
  while read -r file; do
    [ "$file" = "$first" ] || pytest_step "$(basename "$file" .py)" 60 -m gpu "$tree/$file"
  done < <(cd "$tree" && for folder in interaction coupling run ''; do
    grep -rlE 'mark\.(gpu|devices\()|from devices import' "tests/$folder" --include='test_*.py' | tr -s / | LC_ALL=C sort
  done | awk '!seen[$0]++')
}

# What is not marked gpu meets the GPU where the default device is one.
stage_rest() {
  local parallel=()
  "$python" -c 'import pytest, hypothesis' 2>/dev/null || { skip "no pytest or no hypothesis"; return; }
  if [ -n "$rehearse" ]; then
    pytest_step atomic 60 --noconftest "$tree/tests/test_atomic.py" -k replacement
    return
  fi
  ! "$python" -c 'import xdist' 2>/dev/null || parallel=(-n "$(($(nproc) < 8 ? $(nproc) : 8))" --dist loadfile)
  pytest_step all 75 -m "not gpu" --continue-on-collection-errors "${parallel[@]}" "$tree/tests"
}

# benchmark LIMIT SIZE CASE...: a process for each case; results are written after each comparison
benchmark() {
  local limit=$1 size=$2 case
  shift 2
  for case in "$@"; do
    step "$case" "$limit" "$python" -m benchmarks --device "$device" --size "$size" --no-compile \
      --output "$out" --name running "$case"
  done
}

stage_quick() {
  if [ -n "$rehearse" ]; then benchmark 60 tiny density; else benchmark 45 quick "${targets_first[@]}"; fi
}

stage_full() {
  if [ -n "$rehearse" ]; then
    benchmark 60 tiny potential
  else
    benchmark 200 full bandwidth density training_step force_step pairs sorting potential memory
  fi
}

# ---------------------------------------------------------------------------------------------- to work
trap finish EXIT
trap 'stop INT' INT
trap 'stop TERM' TERM
trap 'stop HUP' HUP
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
for name in pyproject.toml README.md ARCHITECTURE.md CHANGELOG.md CONTRIBUTING.md SECURITY.md .importlinter \
  CMakeLists.txt cmake cpp analysis benchmarks docs examples pysoftq tests; do
  [ ! -e "$root/$name" ] || (cd "$root" && tar -cf - --exclude='*.so' "$name") |
    tar -xf - -C "$tree" --no-same-permissions
done
chmod -R u+w "$tree"
cp -Rp "$tree/pysoftq" "$site/"
rm -rf "$site/pysoftq/analysis"
cp -Rp "$tree/analysis" "$site/pysoftq/analysis"
python_path=${PYTHONPATH:-}
# From an empty folder: Python looks first where it is started, and the sources have no extension.
export PYTHONPATH=$site:$work/deps${python_path:+:$python_path}:$tree
export PATH=$PATH:/usr/local/cuda/bin:$work/sanitizer/nvidia/cu13/compute-sanitizer
export TMPDIR=$work/tmp PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 MPLCONFIGDIR=$work/matplotlib XDG_CACHE_HOME=$work/cache
export root python carried work site tree module rehearse python_path
export -f probe unpack checksum configure_and_build adopt extension configuration
cd "$work/empty" || exit
compare

for stage in "${all_stages[@]}"; do
  stage_start=$SECONDS
  if [[ " versions $chosen " != *" $stage "* ]]; then
    skip "left out by --stages"
  elif [ -n "$blocked" ]; then
    skip "$blocked"
  else
    stage_end=$((SECONDS + ${cap[$stage]} * patience))
    "stage_$stage"
  fi
done
for stage in "${all_stages[@]}"; do
  case ${state[$stage]} in passed | skipped) ;; *) exit 1 ;; esac
done
exit 0
