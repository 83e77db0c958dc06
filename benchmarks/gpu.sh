#!/usr/bin/env bash
# The measurement of a machine's GPU, in nine minutes at most, without a network:
#   benchmarks/gpu-pack --bare                      before, on a machine with a network
#   benchmarks/gpu.sh [--quick | --techniques]      on the machine with the GPU; python3 there has torch and torchvision
# Results go into one file for each kind of device, $OUT/gpu-NAME.json or cpu.json (OUT: benchmarks/results), after each
# part; a part that fails or runs out of time costs only itself, and is named at the end. What must be reached comes
# first; --techniques takes another nine minutes and adds to the same file: each technique of the step with more rounds,
# the other engine, --batch auto. Without a GPU the processor is measured, at sizes it can bear. --quick: tiny sizes, to
# see that all of it works up to the device. At most $CORES (8) of the processors that this process may use are used, as
# in the table; LIMIT bounds the seconds in all, the start and the end of a part that is stopped included.
set -uo pipefail
began=$SECONDS
root=$(cd "$(dirname "$0")/.." && pwd)
pack=${PACK:-$root/build/gpu-pack} out=${OUT:-$root/benchmarks/results} cores=${CORES:-8}
case $#${1:-} in
0 | 1--quick | 1--techniques) which=${1:-} ;;
*) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
[ -f "$pack/yolov5.tar.gz" ] || { echo "gpu.sh: $pack is not there: run benchmarks/gpu-pack first" >&2; exit 1; }

gpu=$(python3 -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")') || exit 1
if [ "$which" = --quick ]; then kind=quick device=cpu limit=${LIMIT:-1500}
elif [ -n "$gpu" ]; then kind=gpu device=0 limit=${LIMIT:-510}
else kind=cpu device=cpu limit=${LIMIT:-510}; fi
mkdir -p "$out" && [ -w "$out" ] || { echo "gpu.sh: $out cannot be written: name another folder with OUT" >&2; exit 1; }
out=$(cd "$out" && pwd)
result=$out/$kind$([ $kind != gpu ] || printf %s "-$gpu" | tr '[:upper:] ' '[:lower:]-').json
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# a project as the template makes it, without cookiecutter; packages of the pack only where this machine lacks them
mkdir -p "$work/site" "$work/project/data" "$work/project/runs"
missing() { # the wheels of the pack whose package, or OpenCV in any of its packages, this machine lacks
    python3 - "$pack"/wheels/*.whl <<'END'
import importlib.metadata, importlib.util, pathlib, sys
for wheel in sys.argv[1:]:
    name = pathlib.Path(wheel).name.split("-")[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if not (name.startswith("opencv") and importlib.util.find_spec("cv2")):
            print(wheel)
END
}
mapfile -t wheels < <(missing)
for wheel in "${wheels[@]}"; do # by zipfile: a bare python3 need not have pip, and none of them has more than packages
    python3 -m zipfile -e "$wheel" "$work/site" || exit 1
done
cp -r "$root"/template/*/code "$work/project/"
rm -rf "$work/project/code/yolov5"
mkdir -p "$work/project/code/yolov5"
tar -C "$work/project/code/yolov5" -xzf "$pack/yolov5.tar.gz"
printf 'engine: yolov5\nmodel: yolov5n\nimage_size: 640\n' >"$work/project/lab.yaml"
export PYTHONPATH=$work/project/code:$work/site PYTHONDONTWRITEBYTECODE=1 CACHE_DIR=$work/cache
cd "$work/project" || exit 1

# a control group may leave any of the processors, so those that may be used are asked for
narrow=()
some=$(python3 -c "import os; print(*sorted(os.sched_getaffinity(0))[:$cores], sep=',')")
if [ "$(nproc)" -gt "$cores" ] && command -v taskset >/dev/null; then narrow=(taskset -c "$some"); fi
failed=()

part() { # NAME SECONDS COMMAND…
    local name=$1 seconds=$2 left=$((limit - SECONDS + began))
    shift 2
    [ "$left" -ge 15 ] || { failed+=("$name (no time left)"); return; }
    [ "$seconds" -le "$left" ] || seconds=$left
    echo "== $name, $seconds s at most" >&2
    timeout --signal=TERM --kill-after=5 "$seconds" "${narrow[@]}" python3 "$@" || failed+=("$name")
    keep "$name" || failed+=("$name (not kept)")
}
keep() { # NAME: take what there is of a part into the result, also of one that was stopped
    [ -f "$work/$1.json" ] || return 0
    python3 - "$result" "$1" "$work/$1.json" <<'END'
import json, pathlib, sys
file, name, part = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
said = json.loads(file.read_text()) if file.exists() else {}
fresh = file.with_suffix(".part")
fresh.write_text(json.dumps({**said, name: json.loads(part.read_text())}, indent=1) + "\n")
fresh.replace(file)
END
}
bench() { # NAME SECONDS OPTION…
    local name=$1 seconds=$2
    shift 2
    part "$name" "$((seconds + 12))" -m lab bench --device "$device" --seconds "$seconds" --out "$work/$name.json" "$@"
}

epochs() { # SECONDS OPTION…
    local seconds=$1
    shift
    part epochs "$seconds" "$root/benchmarks/epochs.py" --device "$device" --model yolov5n --result "$work/epochs.json" "$@"
}

paint() { # SECONDS OPTION…
    local seconds=$1
    shift
    part paint-device "$seconds" "$root/benchmarks/paint_device.py" --result "$work/paint-device.json" "$@"
}

batch_auto() { # SECONDS: ultralytics writes its tables with polars, which is not in the pack, so YOLOv5 alone
    part batch-auto "$1" "$root/benchmarks/batch_auto.py" --engine yolov5 --model yolov5x --img 640 --images 1200 \
        --result "$work/batch-auto.json"
}

case $kind$which in
quick*)
    tiny=(--model yolov5n --img 64 --batch 4)
    paint 100 --seconds 1 --batch 2 --side 64 --images 8
    bench bench-yolov5n 300 "${tiny[@]}"
    bench bench-yolov5nu 300 "${tiny[@]}" --engine yolov5u
    bench loader 200 "${tiny[@]}" --loader
    epochs 300 --img 64 --batch 8 --images 32 --picture 96 --path device
    bench switches-yolov5n 500 "${tiny[@]}" --switches
    ;;
cpu*)
    bench loader 70 --model yolov5n --img 640 --batch 16 --loader
    bench bench-yolov5n 100 --model yolov5n --img 320 --batch 8
    bench switches-yolov5n 150 --model yolov5n --img 320 --batch 8 --switches
    epochs 120 --img 96 --batch 16 --images 128 --picture 640
    ;;
gpu)
    # the painting kernel first: its compilation stays in Inductor's cache for all that follow
    paint 90 --seconds 1
    bench bench-yolov5n 75 --model yolov5n --batch 64
    bench bench-yolov5s 75 --model yolov5s --batch 64
    bench bench-yolov5m 40 --model yolov5m --batch 64
    bench bench-yolov5l 40 --model yolov5l --batch 64
    epochs 90 --img 640 --batch 64 --images 1600
    bench switches-yolov5n 80 --model yolov5n --batch 64 --switches
    ;;
gpu--techniques)
    bench switches-yolov5n 180 --model yolov5n --batch 64 --switches
    bench switches-yolov5s 110 --model yolov5s --batch 64 --switches
    bench bench-yolov5nu 50 --engine yolov5u --model yolov5n --batch 64
    bench loader 35 --batch 64 --loader
    batch_auto 80
    ;;
esac
echo "gpu.sh: $((SECONDS - began)) s, results in $result" >&2
[ ${#failed[@]} -eq 0 ] || { printf 'gpu.sh: failed: %s\n' "${failed[@]}" >&2; exit 1; }
