"""Runs a command that dies with its parent: `python -I -S child.py SIGNAL PARENT_PID ACCOUNT COMMAND...`.

Started by path and without site-packages, because it stands before every child and costs its start-up time.
"""

import ctypes
import os
import pwd
import signal
import sys
import time
import warnings  # noqa: F401 - execvp imports it, too late when the account may not read our Python

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000

SAME = "same"
NAMESPACE = "namespace"
NOBODY = "nobody"


WATCH_SECONDS = 0.2


def die_with_parent(death_signal: int, parent: int) -> None:
    """Has `death_signal` sent to this process when the parent ends; ends at once when it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    else:
        watch(death_signal, parent)
    if os.getppid() != parent:
        sys.exit("the parent process has already ended")


def watch(death_signal: int, parent: int) -> None:
    """What the kernel does on Linux: a process beside this one that looks for its parent."""
    watched = os.getpid()
    if os.fork():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whoever reads the output of this process must see its end.
    os.closerange(0, 256)
    while os.getppid() == watched and _lives(parent):
        time.sleep(WATCH_SECONDS)
    if os.getppid() == watched:
        os.kill(watched, death_signal)
    os._exit(0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def nobody_ids() -> tuple[int, int]:
    """User and group id of the account `nobody`."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def enter_user_namespace() -> None:
    """Appears as `nobody` inside, while to the kernel and the files outside it stays our own account.

    Raises:
        OSError: user namespaces are not permitted here.
    """
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    uid, gid = nobody_ids()
    for path, text in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/gid_map", f"{gid} {outer_gid} 1"),
        ("/proc/self/uid_map", f"{uid} {outer_uid} 1"),
    ):
        with open(path, "w") as file:
            file.write(text)


def become_nobody() -> None:
    uid, gid = nobody_ids()
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main(arguments: list[str]) -> None:
    death_signal, parent, account, *command = arguments
    # A shell that starts us in the background has these ignored, and exec would hand that on.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    try:
        if account == NAMESPACE:
            enter_user_namespace()
        elif account == NOBODY:
            become_nobody()
        # The kernel forgets the death signal whenever the account changes, so it comes last.
        die_with_parent(int(death_signal), int(parent))
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
