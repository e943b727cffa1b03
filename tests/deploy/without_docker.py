"""A service of compose.yaml as a process of this machine, walled in as Compose would have it: its command line, its
variables, its mounts and nothing else; no capabilities, and a root that cannot be written to (bubblewrap).

All share one network of their own (a namespace), in which every service's name is 127.0.0.1, so that the ports that
compose.yaml names are theirs whatever else runs here. Needs root, as CI has it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Self

from tests.system_package import require_program

ROOT = Path(__file__).parents[2]
_SOURCE = "/opt/source"  # where the repository lies within: /tmp is a service's own


class Network:
    """A network namespace: `run` what is to be in it, `service` for what is walled in besides."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._hosts = folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n", encoding="utf-8")
        self._bwrap = require_program("bwrap", package="bubblewrap")

    def __enter__(self) -> Self:
        script = "ip link set lo up && echo up && exec sleep infinity"
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, holder)
        assert holder.stdout is not None
        self._stack.callback(holder.stdout.close)
        assert holder.stdout.readline() == "up\n", "needs root and iproute2"
        self._enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """To its end; raises where that is none of 0, and shows what was said."""
        ran = subprocess.run(
            [*self._enter, *command], capture_output=True, text=True, check=False, timeout=120, **options
        )
        if ran.returncode:
            raise subprocess.CalledProcessError(ran.returncode, ran.args, ran.stdout, ran.stderr) from RuntimeError(
                ran.stdout + ran.stderr
            )
        return ran

    def start(self, command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Ended with this network at the latest."""
        output: IO[bytes] = self._stack.enter_context(log.open("wb"))
        process = subprocess.Popen([*self._enter, *command], stdout=output, stderr=subprocess.STDOUT)
        self._stack.callback(_end, process)
        return process

    def walled(self, service: Mapping[str, Any], mounts: Mapping[str, Path], *, extra: Mapping[str, str]) -> list[str]:
        """The command line that runs a service. `mounts`: target -> what is bound there, read-only where Compose says
        so; `extra`: variables of the image."""
        writable = {volume["target"] for volume in service.get("volumes", []) if not volume.get("read_only")}
        command = [
            self._bwrap,
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--die-with-parent",
        ]
        command += ["--uid", "10001", "--gid", "10001", "--cap-drop", "ALL", "--clearenv"]
        command += [
            "--hostname",
            service.get("hostname", "service"),
            "--dev",
            "/dev",
            "--proc",
            "/proc",
            "--tmpfs",
            "/tmp",
        ]
        seen = {"/usr", "/bin", "/lib", "/lib64", "/etc", sys.base_prefix, sys.prefix}
        for path in sorted(seen):
            command += (
                ["--symlink", str(Path(path).readlink()), path]
                if Path(path).is_symlink()
                else ["--ro-bind", path, path]
            )
        command += ["--ro-bind", str(self._hosts), "/etc/hosts", "--ro-bind", str(ROOT), _SOURCE]
        for target, source in mounts.items():
            command += ["--bind" if target in writable else "--ro-bind", str(source), _within(target)]
        command += ["--remount-ro", "/", "--chdir", "/tmp"]
        variables = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": _SOURCE,
            "HOME": "/tmp",
            **extra,
        }
        for name, value in {**variables, **service.get("environment", {})}.items():
            command += ["--setenv", name, value]
        return [*command, "--", *service.get("entrypoint", []), *map(_within, service["command"])]


def _within(text: str) -> str:
    """/etc is this machine's, to which bubblewrap can add nothing: what is mounted in it stands below /mnt."""
    return text.replace("/etc/palimpsest/", "/mnt/palimpsest/").replace("/etc/prometheus", "/mnt/prometheus")


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(what: str, is_so: Callable[[], bool], seconds: float) -> None:
    """Raises `AssertionError` that says what has not come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@contextmanager
def shown_at_failure(folder: Path) -> Any:
    """The ends of all logs, where something fails: pytest shows what was printed."""
    try:
        yield
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"\n== {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
        raise
