"""What `lab serve` gives of bare onnxruntime's throughput, and how its answers' times spread, under load.

    python benchmarks/serve.py MODEL.onnx [--name yolov5n] [--picture FILE.jpg] [--cores 2] [--rounds 5] \\
        [--seconds 10] [--clients 8]

In a container of a project (onnxruntime and the service's packages are there):

    docker compose run --rm --volume PATH/benchmarks:/benchmarks dev \\
        python /benchmarks/serve.py runs/train/exp/weights/best.onnx --out runs/serve.json

`bare` is session.run() on one ready input, over and over, in the better of two ways: one thread with all cores, and a
thread for each core. `processor_share` compares processor time for a picture instead, which other work on the machine
disturbs less. `service` is `lab serve` with `--clients` connections that each send the next picture when the last
has come back: HTTP, decoding, scaling, suppression and JSON included. Both are pinned to the same cores and alternate;
on a machine with more cores the clients have their own, else they share. One picture by itself, with nobody else, is
measured too. Writes benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUSY = b"HTTP/1.1 429"
SINGLE = "a thread for each core"  # in it no thread waits for another, so that processor time is work


def bare(model: str, seconds: float) -> dict[str, dict[str, float]]:
    """Pictures a second, and processor milliseconds for each, of both ways, on the cores this process is pinned to."""
    import numpy as np  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0))
    found: dict[str, dict[str, float]] = {}
    for name, wide, count in (("one thread, all cores", cores, 1), (SINGLE, 1, cores)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = wide, 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        shape = [
            side if isinstance(side, int) else free for side, free in zip(entry.shape, (1, 3, 640, 640), strict=True)
        ]
        images = np.random.default_rng(0).random(shape, np.float32)
        for _ in range(3):
            session.run(None, {entry.name: images})
        runs = [0] * count
        until = time.monotonic() + seconds / 2

        def work(number: int, runs: list[int] = runs, until: float = until, call: Any = session.run) -> None:
            while time.monotonic() < until:
                call(None, {entry.name: images})  # noqa: B023
                runs[number] += 1

        begun, used = time.monotonic(), time.process_time()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pictures = sum(runs) * shape[0]
        found[name] = {
            "per_second": round(pictures / (time.monotonic() - begun), 2),
            "processor_ms": round((time.process_time() - used) / pictures * 1000, 1),
        }
    return found


def load(port: int, picture: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Ask from `clients` connections for `seconds`; answers a second, and the time of each (s)."""
    fields = f"Host: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}"
    message = f"POST /predict HTTP/1.1\r\n{fields}\r\n\r\n".encode() + picture
    chooser = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    rest: dict[socket.socket, bytes] = {}
    for _ in range(clients):
        one = socket.create_connection(("127.0.0.1", port), 30)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chooser.register(one, selectors.EVENT_READ)
        sent[one], rest[one] = time.monotonic(), b""
        one.sendall(message)
    times: list[float] = []
    refused = 0
    begun, took, within = time.monotonic(), 0.0, 0
    while sent:  # to the last answer, so that the service's work is all counted
        if not took and time.monotonic() > begun + seconds and len(times) >= 5:
            took, within = time.monotonic() - begun, len(times)
        for key, _ in chooser.select(1):
            one: Any = key.fileobj
            rest[one] += one.recv(1 << 18)
            header, found, body = rest[one].partition(b"\r\n\r\n")
            if not found or len(body) < int(header.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
                continue
            refused += header.startswith(BUSY)
            assert header.startswith((b"HTTP/1.1 200", BUSY)), header
            times.append(time.monotonic() - sent[one])
            if took:
                chooser.unregister(one)
                one.close()
                del sent[one]
                continue
            rest[one], sent[one] = b"", time.monotonic()
            one.sendall(message)
    return {"per_second": within / took, "times": times, "refused": refused}


class Service:
    """`lab serve` in a process of its own, pinned to `cores`."""

    def __init__(self, model: str, cores: set[int]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab", "serve", "--weights", model, "--port", "0", "--device", "cpu"],
            stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509
        )  # fmt: skip
        assert self.process.stdout
        for line in self.process.stdout:
            if about := re.search(r"\((\w+), (\d+) x (\d+) pixels, (\d+) classes\)", line):
                self.about = {
                    "engine": about[1], "width": int(about[2]), "height": int(about[3]), "classes": int(about[4]),
                }  # fmt: skip
            if line.startswith("lab: http://"):
                self.port = int(line.split(":")[3].split(",")[0])
                return
        raise SystemExit("the service did not start")

    def used(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """Its largest resident set, in MiB, before it is told to end."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        self.process.terminate()
        self.process.wait(20)
        return int(status.split("VmHWM:")[1].split()[0]) >> 10


def quantile(times: list[float], share: float) -> float:
    """A quantile in milliseconds."""
    return round(sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1000, 1)


def main() -> None:
    """Alternate bare and service, and write what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--name", default="", help="what the model is, where its file is called best.onnx: yolov5n")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serve.json")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        print(json.dumps(bare(given.model, given.seconds)))
        return
    import cv2  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    from lab import demo  # noqa: PLC0415

    here = sorted(os.sched_getaffinity(0))
    cores = set(here[: given.cores])
    if len(here) > given.cores:
        os.sched_setaffinity(0, set(here[given.cores :]))
    if given.picture:
        picture = given.picture.read_bytes()
    else:
        drawn = demo.draw(demo.Recipe(images=2, size=640), "val", 0)[0]
        picture = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    file = Path(given.model)
    rounds = []
    for number in range(given.rounds):
        done = subprocess.run(
            [sys.executable, __file__, "--bare", given.model, "--seconds", str(given.seconds)], check=True,
            capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        plain = json.loads(done.stdout)
        service = Service(given.model, cores)
        load(service.port, picture, given.clients, 1)
        used = service.used()
        loaded = load(service.port, picture, given.clients, given.seconds)
        used = service.used() - used
        alone = load(service.port, picture, 1, given.seconds / 4)
        memory = service.end()
        best = max(way["per_second"] for way in plain.values())
        times = loaded["times"]
        rounds.append(
            {
                "bare": plain,
                "service_per_second": round(loaded["per_second"], 2),
                "share": round(loaded["per_second"] / best, 3),
                "processor_ms": round(used / len(times) * 1000, 1),
                "processor_share": round(plain[SINGLE]["processor_ms"] * len(times) / used / 1000, 3),
                "p50_ms": quantile(times, 0.5), "p95_ms": quantile(times, 0.95), "p99_ms": quantile(times, 0.99),
                "p99_over_p50": round(quantile(times, 0.99) / quantile(times, 0.5), 2),
                "refused": loaded["refused"],
                "alone_p50_ms": quantile(alone["times"], 0.5),
                "memory_mib": memory,
                "load_average": round(os.getloadavg()[0], 1),
            }
        )  # fmt: skip
        print(number, json.dumps(rounds[-1]), flush=True)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": {"processor": _processor(), "cores": given.cores, "cores_of_machine": os.cpu_count()},
        "versions": {
            "python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__,
        },
        "model": {"name": given.name or file.stem, "bytes": file.stat().st_size, **service.about},
        "picture": f"{given.picture.name if given.picture else 'made-up, 640 x 640'}, {len(picture) >> 10} KiB",
        "clients": given.clients, "seconds": given.seconds,
        "clients_share_the_cores": len(here) <= given.cores,
        "share_median": statistics.median(one["share"] for one in rounds),
        "processor_share_median": statistics.median(one["processor_share"] for one in rounds),
        "p99_over_p50_median": statistics.median(one["p99_over_p50"] for one in rounds),
        "rounds": rounds,
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"share {result['share_median']}, p99/p50 {result['p99_over_p50_median']}: {given.out}")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
