"""What the simulated machines need of the real one, and how it gets here."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
}
POLICY = Path("/usr/sbin/policy-rc.d")
LOCK = Path(tempfile.gettempdir()) / "simulated-machines.lock"
LOCKED_SECONDS = 600


def tool(name: str) -> str:
    """The absolute path of a program that `obstacle` has found."""
    found = shutil.which(name, path=SYSTEM_PATH)
    assert found, f"{name} is not installed"
    return found


def obstacle() -> str | None:
    """Why machines cannot be simulated here, with what to do about it; installs missing packages where it may."""
    if os.geteuid() != 0:
        return "The simulated machines are namespaces of their own, which only root may make: run this as root."
    # Tests run in several processes: one installs, and the others wait until it has.
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (packages := _missing()) and shutil.which("apt-get"):
            _install(packages)
            packages = _missing()
    if packages:
        return f"Programs are missing: run `apt-get update && apt-get install -y {' '.join(packages)}`."
    probe = subprocess.run(
        [tool("unshare"), "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", tool("ip"), "link"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if probe.returncode:
        return (
            f"Namespaces are not permitted here ({probe.stderr.strip()}): in a container, start it with `--privileged`."
        )
    return None


def _missing() -> list[str]:
    return sorted({package for name, package in PACKAGES.items() if not shutil.which(name, path=SYSTEM_PATH)})


def _install(packages: list[str]) -> None:
    """Installs without starting the services that come with the packages."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        _apt_get("update", "-q")
        _apt_get("install", "-q", "-y", "--no-install-recommends", *packages)
    finally:
        if ours:
            POLICY.unlink()


def _apt_get(*arguments: str) -> None:
    """Waits while another apt-get is at work."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    end = time.monotonic() + LOCKED_SECONDS
    command = ["apt-get", *arguments]
    while "Could not get lock" in subprocess.run(command, env=environment, capture_output=True, text=True).stderr:
        assert time.monotonic() < end, f"another apt-get has been at work for {LOCKED_SECONDS} s"
        time.sleep(1)
