"""One stage of the toy project: ``toy.py NAME SECONDS OUT [NEED ...]``; works as a stage of the real one does.

Resumes from its work folder, holds it by ``flock``, saves on SIGTERM, and leaves with the documented codes.
``fault/NAME`` changes what it does halfway: ``2`` always fails, ``once 75`` and ``once kill`` end it once,
``meet OTHER`` waits until OTHER has begun, ``hold`` waits until the file is gone. ``pace`` has the seconds of a step.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable

import yaml


def read(path: pathlib.Path) -> list[str]:
    """The words of a file; none when there is none."""
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []


def wait(happened: Callable[[], object]) -> None:
    """Wait for something; leave with 1 when it does not happen."""
    deadline = time.monotonic() + 150
    while not happened():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.01)


def main(name: str, seconds: str, out: str, *needs: str) -> int:
    """Returns the exit code."""
    seed = yaml.safe_load(pathlib.Path("params.yaml").read_text())["seed"]
    key = hashlib.sha256(json.dumps([seed, name, *[pathlib.Path(n).read_text() for n in needs]]).encode()).hexdigest()
    group, _, item = name.partition("@")
    home = pathlib.Path("data/work", group, item or "all", key[:12])
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home.parent / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{name} is already running", file=sys.stderr)
        return 7
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    progress, total = home / "step", max(1, round(float(seconds) * 20))
    step = int(progress.read_text()) if progress.exists() else 0
    if 0 < step < total:
        print(f"{name}: continuing at step {step} of {total}")
    clock = pathlib.Path("clock")
    clock.mkdir(exist_ok=True)
    fault, pace = pathlib.Path("fault", name), float((read(pathlib.Path("pace")) or ["0.05"])[0])
    while step < total:
        if stop:
            print(f"{name}: saved at step {step}")
            return 75
        with open(clock / name, "a") as log:
            log.write(f"{os.getpid()} {step} {time.time()}\n")
        time.sleep(pace)
        step += 1
        scratch = home / "step.new"
        scratch.write_text(str(step))
        scratch.replace(progress)
        if step % 10 == 0:
            print(f"{name}: step {step} of {total}")
        wish = read(fault) if step > total // 2 else []
        if wish[:1] == ["hold"]:
            wait(lambda: stop or not fault.exists())
        elif wish[:1] == ["meet"]:
            wait(pathlib.Path(clock, wish[1]).exists)
        elif wish:
            if wish[0] == "once":
                fault.unlink()
            if wish[-1] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            print(f"{name}: seed: the seed {seed} cannot be used; allowed are others", file=sys.stderr)
            return int(wish[-1])
    target = pathlib.Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{name} {key}\n")
    print(f"{name}: done")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
