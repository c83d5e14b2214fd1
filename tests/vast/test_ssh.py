"""SSH to an instance: addresses, keys, host keys, and programs that are missing."""

import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nvidia_triton.vast import rsync, ssh
from nvidia_triton.vast.context import Address
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.work import Line
from tests.vast.fake import FakeVast
from tests.vast.kit import until
from tests.vast.rented import Rented, rent


@pytest.fixture
def rented(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> Rented:
    return rent(vast, vast_env, tmp_path / "checkout")


def test_a_script_arrives_over_standard_input_and_its_output_comes_back(rented: Rented) -> None:
    connection = ssh.check(rented.context, rented.instance)
    lines: list[str] = []
    script = 'cat; echo "$word"; ps -eo args | grep -c "[b]ash -s"; tr "\\0" " " </proc/$PPID/cmdline'
    output = connection.run(script, {"word": "it's $HOME"}, on_line=lines.append)
    assert lines[0] == "it's $HOME"
    assert output == "\n".join(lines)
    assert "HOME" not in output.splitlines()[-1]


def test_a_script_that_is_cut_off_does_nothing(rented: Rented) -> None:
    whole = ssh.wrapped("touch /opt/one\ntouch /opt/two", {})
    subprocess.run(["bash", "-s"], input=whole[: whole.index("touch /opt/two")], text=True, check=False, timeout=10)
    assert not (rented.opt / "one").exists()


def test_a_script_that_fails_tells_its_last_words(rented: Rented) -> None:
    connection = ssh.check(rented.context, rented.instance)
    with pytest.raises(ssh.RemoteFailed, match="no disk left") as caught:
        connection.run("echo no disk left >&2; exit 3")
    assert caught.value.code == 3


def test_a_silent_instance_is_given_up(rented: Rented) -> None:
    connection = ssh.check(rented.context, rented.instance)
    with pytest.raises(ssh.Unreachable, match="did not answer within 1 s"):
        connection.run("sleep 60", timeout=1)


def test_the_proxy_is_taken_where_the_direct_port_does_not_answer(rented: Rented) -> None:
    direct, proxy = rented.instance.addresses
    assert ssh.check(rented.context, rented.instance).address == direct
    rented.vast.refuse(rented.instance.id, proxy=False)
    assert ssh.check(rented.context, rented.instance).address == proxy


def test_an_instance_without_an_address_says_so(rented: Rented) -> None:
    stopped = dataclasses.replace(rented.instance, addresses=(), status="exited")
    with pytest.raises(TargetError, match=f"make start-instance CONTRACT_ID={rented.instance.id}"):
        ssh.connect(rented.context, stopped)


def test_a_key_that_arrives_late_is_waited_for(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> None:
    vast.faults.ssh_key_seconds = 600
    rented = rent(vast, vast_env, tmp_path / "checkout")
    with pytest.raises(ssh.KeyRefused, match="refuses the SSH key"):
        ssh.check(rented.context, rented.instance)
    with ThreadPoolExecutor() as elsewhere:
        connecting = elsewhere.submit(ssh.connect, rented.context, rented.instance)
        until(lambda: "refuses the key; trying again" in rented.said(), "the key is refused")
        vast.faults.ssh_key_seconds = 0
        assert connecting.result().run("echo in") == "in"


def test_a_key_that_never_comes_is_an_error_with_advice(rented: Rented, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    settings = dataclasses.replace(rented.context.settings, ssh_key=other)
    context = dataclasses.replace(rented.context, settings=settings)
    with pytest.raises(ssh.KeyRefused, match="ssh-add"):
        ssh.connect(context, rented.instance, patience=0)


def test_an_instance_that_comes_up_late_is_waited_for(rented: Rented) -> None:
    ident = rented.instance.id
    rented.vast.refuse(ident)
    with pytest.raises(ssh.Unreachable, match="make list-instances"):
        ssh.check(rented.context, rented.instance)
    timer = threading.Timer(2, rented.vast.refuse, (ident, False))
    timer.start()
    assert ssh.connect(rented.context, rented.instance).run("echo in") == "in"
    timer.join()


def test_a_changed_host_key_stops_everything_until_it_is_forgotten(rented: Rented) -> None:
    ident = rented.instance.id
    ssh.check(rented.context, rented.instance)
    rented.vast.change_host_key(ident)
    with pytest.raises(ssh.HostKeyChanged) as caught:
        ssh.connect(rented.context, rented.again())
    assert "is not the one of the first connection" in str(caught.value)
    command = str(caught.value).split("`")[1]
    assert command.startswith(f"ssh-keygen -R vast-{ident} -f ")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert ssh.connect(rented.context, rented.again()).run("echo in") == "in"


def test_a_reused_address_is_no_changed_host_key(rented: Rented) -> None:
    """Vast gives an address to another instance later; the key belongs to the instance."""
    ssh.check(rented.context, rented.instance)
    rented.vast.change_host_key(rented.instance.id)
    assert ssh.check(rented.context, dataclasses.replace(rented.again(), id=1)).run("echo in") == "in"


def test_the_users_own_configuration_does_not_interfere(
    rented: Rented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh.check(rented.context, rented.instance)
    arguments = ssh.Connection(rented.context, rented.instance, Address("127.0.0.1", 22)).command()
    assert arguments[:3] == ["ssh", "-F", "/dev/null"]
    shown = subprocess.run(
        [arguments[0], "-G", *arguments[1:]], capture_output=True, text=True, check=True, timeout=10
    ).stdout.splitlines()
    assert {
        f"hostkeyalias vast-{rented.instance.id}",
        "hostname 127.0.0.1",
        "stricthostkeychecking accept-new",
        "identitiesonly yes",
        "batchmode yes",
        "globalknownhostsfile /dev/null",
        f"userknownhostsfile {rented.context.state.known_hosts}",
    } <= set(shown)


def test_a_state_directory_with_a_space(vast: FakeVast, vast_env: dict[str, str], tmp_path: Path) -> None:
    rented = rent(vast, {**vast_env, "LOCAL_DIR": str(tmp_path / "my state 100%")}, tmp_path / "checkout")
    connection = ssh.check(rented.context, rented.instance)
    assert connection.run("echo in") == "in"
    assert rented.context.state.known_hosts.is_file()
    rsync.send(connection, rented.add_model("tiny"), "/opt/tiny", Line())
    assert (rented.opt / "tiny/config.pbtxt").is_file()


def test_without_ssh_on_this_machine(rented: Rented, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="`ssh` is not installed on this machine"):
        ssh.connect(rented.context, rented.instance)


def test_interactive_returns_the_code_of_the_shell(rented: Rented, tmp_path: Path) -> None:
    program = (
        "import sys; from nvidia_triton.vast import ssh;"
        "from nvidia_triton.vast.vast import VastClient; from nvidia_triton.vast.wiring import open_context;"
        "context = open_context(); instance = VastClient(context.settings).instance(int(sys.argv[1]));"
        "sys.exit(ssh.interactive(context, instance))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(rented.instance.id)],
        input="exit 7\n",
        env=dict(rented.context.settings.environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 7, done.stderr
