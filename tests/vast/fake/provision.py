"""The files of a rented machine. All of them are in its /opt, the only directory that is its own and stays."""

import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nvidia_triton.local.triton import TritonServer
from tests.vast.fake.faults import Machine
from tests.vast.fake.prerequisites import SYSTEM_PATH, tool

INSIDE = "/opt/.machine"
HOME = "/opt/root"
SESSION_PATH = f"{INSIDE}/bin:{SYSTEM_PATH}"

# Everything of the real machine is there and cannot be written, except /tmp. What its /opt holds appears in this
# one's, because interpreters and wheels may be installed there.
BOOT = """
set -eu
opt=$1 shm_mib=$2
shift 2
ip link set lo up
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/sshd /run/lock
mount -t tmpfs -o "mode=1777,size=${shm_mib}m" shm /dev/shm
for entry in /opt/* /opt/.[!.]*; do
    mine=$opt/${entry##*/}
    case ${entry##*/} in tritonserver|triton|models|root|.machine) continue ;; esac
    if [ -L "$entry" ]; then cp -a "$entry" "$opt/"
    elif [ -d "$entry" ]; then mkdir -p "$mine" && mount --rbind "$entry" "$mine"
    elif [ -e "$entry" ]; then touch "$mine" && mount --bind "$entry" "$mine"
    fi
done
mount --rbind "$opt" /opt
mount --bind /tmp /tmp
mount --bind /opt/.machine/passwd /etc/passwd
mount --bind /opt/.machine/shadow /etc/shadow
for program in "$@"; do bash /opt/.machine/hide "$program"; done
mount -o remount,bind,ro /
echo up
exec env --ignore-signal=CHLD sleep infinity
"""

# A shell still finds a program that something empty is mounted over, so its whole directory is replaced, by links.
HIDE = """
set -eu
directory=$(dirname "$1") name=$(basename "$1")
real=$(mktemp -d /run/XXXXXX) seen=$(mktemp -d /run/XXXXXX)
chmod 755 "$seen"
mount --bind "$directory" "$real"
find "$real" -maxdepth 1 -type l ! -name "$name" -exec cp -a -t "$seen" {} +
find "$real" -maxdepth 1 -mindepth 1 ! -type l ! -name "$name" -exec ln -s -t "$seen" {} +
mount --bind "$seen" "$directory"
"""

SSHD = f"""
HostKey {INSIDE}/host_key
AuthorizedKeysFile {INSIDE}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
AllowTcpForwarding yes
PrintMotd no
PrintLastLog no
LoginGraceTime 20
Subsystem sftp internal-sftp
SetEnv PATH={SESSION_PATH}
"""

APT = """#!/bin/sh
case "$*" in
*install*rsync*) {install} ;;
*install*) echo "E: no network" >&2; exit 100 ;;
esac
"""

NVIDIA_SMI = """#!/bin/sh
query= units=" MiB" header=yes
for argument in "$@"; do
    case $argument in
    --query-gpu=*) query=${argument#*=} ;;
    --format=*) case $argument in *noheader*) header= ;; esac; case $argument in *nounits*) units= ;; esac ;;
    esac
done
if [ -z "$query" ]; then echo "NVIDIA-SMI @driver@    Driver Version: @driver@    @gpu@"; exit; fi
[ -z "$header" ] || echo "$query"
index=0
while [ $index -lt @count@ ]; do
    line=
    for field in $(echo "$query" | tr , ' '); do
        case $field in
        driver_version) value="@driver@" ;;
        name|gpu_name) value="@gpu@" ;;
        memory.total) value="@memory@$units" ;;
        memory.used) value="412$units" ;;
        memory.free) value="$((@memory@ - 412))$units" ;;
        index) value=$index ;;
        count) value=@count@ ;;
        *) echo "Field \\"$field\\" is not a valid field to query." >&2; exit 2 ;;
        esac
        line="$line${line:+, }$value"
    done
    echo "$line"
    index=$((index + 1))
done
"""


@dataclass(frozen=True)
class Engine:
    """How a machine starts the wheel's tritonserver with the simulated engine."""

    binary: str
    backends: str
    libraries: str
    path: str

    @classmethod
    def prepare(cls, directory: Path) -> "Engine":
        """
        Raises:
            LocalError: there is no tritonserver for this machine.
        """
        (directory / "none").mkdir(parents=True, exist_ok=True)
        server = TritonServer(model_repository=directory / "none", work_dir=directory)
        server.prepare()
        environment = server.environment()
        return cls(server.command()[0], str(server.backends), environment["LD_LIBRARY_PATH"], str(server.engine.bin))

    def launcher(self) -> str:
        return (
            "#!/bin/sh\n"
            f'export LD_LIBRARY_PATH="{self.libraries}" PATH="{self.path}:$PATH"\n'
            f'exec "{self.binary}" "$@" --backend-directory="{self.backends}" --allow-gpu-metrics=false\n'
        )


def provision(opt: Path, machine: Machine, engine: Engine) -> None:
    """Writes what a machine has when it is first booted."""
    ours = opt / ".machine"
    (ours / "bin").mkdir(parents=True)
    (opt / "root" / ".ssh").mkdir(parents=True, mode=0o700)
    (ours / "boot").write_text(BOOT)
    (ours / "hide").write_text(HIDE)
    (ours / "sshd_config").write_text(SSHD)
    (ours / "authorized_keys").touch()
    (ours / "passwd").write_text("".join(_passwd(line) for line in Path("/etc/passwd").read_text().splitlines(True)))
    # A locked password, as `!` would be, keeps sshd from letting anybody in.
    accounts = [line.split(":")[0] for line in (ours / "passwd").read_text().splitlines()]
    (ours / "shadow").write_text("".join(f"{name}:*:19000:0:99999:7:::\n" for name in accounts))
    make_host_key(opt)
    if machine.nvidia_smi:
        text = NVIDIA_SMI
        values = {
            "driver": machine.driver,
            "gpu": machine.gpu,
            "memory": machine.memory_mib,
            "count": machine.gpu_count,
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        _script(ours / "bin" / "nvidia-smi", text)
    shutil.copy(tool("rsync"), ours / "rsync")
    install = f"cp {INSIDE}/rsync {INSIDE}/bin/rsync" if machine.apt else 'echo "E: no network" >&2; exit 100'
    _script(ours / "bin" / "apt-get", APT.format(install=install))
    if machine.triton:
        (opt / "tritonserver" / "bin").mkdir(parents=True)
        _script(opt / "tritonserver" / "bin" / "tritonserver", engine.launcher())


def hidden(machine: Machine) -> list[str]:
    """Programs of the real machine that this one lacks."""
    names = [name for name, present in (("rsync", machine.rsync), ("nvidia-smi", machine.nvidia_smi)) if not present]
    return [path for name in names if (path := shutil.which(name, path=SYSTEM_PATH))]


def make_host_key(opt: Path) -> None:
    key = opt / ".machine" / "host_key"
    for path in (key, key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    subprocess.run(
        [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f", str(key)],
        stdin=subprocess.DEVNULL,
        check=True,
    )


def authorize(opt: Path, public_key: str) -> None:
    with (opt / ".machine" / "authorized_keys").open("a") as file:
        file.write(public_key.strip() + "\n")


def _passwd(line: str) -> str:
    fields = line.rstrip("\n").split(":")
    if fields[0] == "root":
        fields[5:7] = [HOME, "/bin/bash"]
    return ":".join(fields) + "\n"


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
