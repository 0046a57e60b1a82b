"""``make serve``: a Prefect server, the work pool, a worker and the deployments on this machine, until Ctrl-C.

Everything listens on 127.0.0.1 unless ``--host`` says otherwise, telemetry is off, and nothing outlives this
process: each part runs under ``guard.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from clpdd.cli.arguments import whole_number
from flows.artifacts import REPORT_URL
from flows.environment import ROOT

__all__ = ["ServeError", "Served", "main", "serve"]

_GUARD = Path(__file__).parent / "guard.py"
START_SECONDS = 180.0


class ServeError(Exception):
    """Something did not start; the message says what to do."""


class Served:
    """What runs: ``api`` and ``ui`` are its addresses, ``parts`` its processes by name."""

    def __init__(self, host: str, port: int, home: Path, logs: Path) -> None:
        self.host, self.port, self.home, self.logs = host, port, home, logs
        self.ui = f"http://{host}:{port}"
        self.api = f"{self.ui}/api"
        self.reports = f"http://{host}:{port + 1}"
        self.parts: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For every part, and for whatever wants to talk to the server."""
        return os.environ | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            REPORT_URL: self.reports,
        }

    def start(self, name: str, grace: float, *command: str) -> None:
        """Start ``python COMMAND`` under guard; its output goes to a file of its own below ``logs``."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.logs / f"{name}.log", "ab") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(grace), sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the parts in their order
            )

    def answering(self) -> bool:
        """Whether the server answers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=2)
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def check(self) -> None:
        """Raise ``ServeError`` when a part has ended by itself."""
        for name, process in self.parts.items():
            if process.poll() is not None:
                log = self.logs / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise ServeError(f"the {name} ended with code {process.returncode}; {log} ends:\n{tail}")

    def stop(self) -> None:
        """Stop the parts, last started first: the worker puts its runs back while the server still answers."""
        for process in reversed(self.parts.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(f"{host}:{port} cannot be used ({error.strerror}): choose another with --port") from error


@contextlib.contextmanager
def serve(
    host: str = "127.0.0.1",
    port: int = 4200,
    home: Path | None = None,
    worker: bool = True,
    gpus: int = 1,
    deploy: Sequence[str] = (),
) -> Iterator[Served]:
    """Server, deployments, worker and the result pages; all of it is stopped at the end of the block.

    ``deploy`` holds further arguments of ``flows.deploy``.

    Raises ``ServeError`` when a port is taken or a part does not start.
    """
    home = home or Path(os.environ["PREFECT_HOME"])
    served = Served(host, port, home, home / "logs")
    for used in (port, port + 1):
        _free(host, used)
    try:
        served.start("server", 10, "-m", "prefect", "server", "start", "--host", host, "--port", str(port))
        deadline = time.monotonic() + START_SECONDS
        while not served.answering():
            served.check()
            if time.monotonic() > deadline:
                raise ServeError(f"the server did not answer within {START_SECONDS:.0f} s: see {served.logs}")
            time.sleep(0.2)
        # a process of its own: Prefect reads which server to talk to when it is imported
        done = subprocess.run(
            [sys.executable, "-m", "flows.deploy", "--gpus", str(gpus), *deploy],
            cwd=ROOT,
            env=served.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServeError(done.stderr.strip() or done.stdout.strip())
        results = str(ROOT / "data" / "results")
        served.start("reports", 1, "-m", "http.server", str(port + 1), "--bind", host, "--directory", results)
        if worker:
            served.start("worker", 50, "-m", "flows.worker")
        yield served
    finally:
        served.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0, or 1 after saying what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=whole_number(1, 65534),
        default=4200,
        help="port of the server; the next one serves the result page",
    )
    parser.add_argument(
        "--gpus", type=whole_number(1), default=1, help="slots of the GPU concurrency limit (default: 1)"
    )
    text = "let the schedules of prefect.yaml run; without it they are paused"
    parser.add_argument("--schedules", action="store_true", help=text)
    options = parser.parse_args(arguments)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs start with it ignored
        signal.signal(number, interrupt)
    print("starting the Prefect server ...", flush=True)
    try:
        paused = () if options.schedules else ("--paused",)
        with serve(options.host, options.port, gpus=options.gpus, deploy=paused) as served:
            print(f"Prefect UI   {served.ui}\nAPI          {served.api}   (PREFECT_API_URL)")
            print(f"result page  {served.reports}/report.html   (after a run)\nlogs         {served.logs}")
            print("\nStart a run in the UI (Deployments > on-demand > Run), or from another shell:")
            run = f"{Path(sys.executable).with_name('prefect')} deployment run clpdd/on-demand"
            print(f"  PREFECT_API_URL={served.api} {run}")
            if paused:
                print("The nightly and weekly schedules are paused; `python -m flows.serve --schedules` lets them run.")
            print("Ctrl-C stops all of it.", flush=True)
            try:
                while True:
                    served.check()
                    time.sleep(0.5)
            except KeyboardInterrupt:
                print("stopping: runs save their state and go on after the next start ...", flush=True)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt:
        return 130
    except ServeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
