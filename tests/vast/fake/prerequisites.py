"""What the simulated machines need of the real one, and how it gets here."""

import os
import shutil
import subprocess
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


def tool(name: str) -> str:
    """The absolute path of a program that `obstacle` has found."""
    found = shutil.which(name, path=SYSTEM_PATH)
    assert found, f"{name} is not installed"
    return found


def obstacle() -> str | None:
    """Why machines cannot be simulated here, with what to do about it; installs missing packages where it may."""
    if os.geteuid() != 0:
        return "The simulated machines are namespaces of their own, which only root may make: run this as root."
    packages = _missing()
    if packages and shutil.which("apt-get"):
        _install(packages)
        packages = _missing()
    if packages:
        return f"Programs are missing: run `apt-get update && apt-get install -y {' '.join(packages)}`."
    probe = subprocess.run(
        [tool("unshare"), "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", tool("ip"), "link"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
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
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, check=False, timeout=600)
    finally:
        if ours:
            POLICY.unlink()
