"""A simulation of Vast.ai: its REST API, and rented machines that are real Linux environments of this machine.

Nothing of the real service is reached and nothing is paid. An instance is a set of namespaces with a loopback, an
/opt, a /run and a /dev/shm of its own; a real sshd serves it, and a real tritonserver runs in it on its own ports.

    with FakeVast(tmp_path, boot_seconds=0.2) as vast:      # or the fixture `vast` of tests/vast/conftest.py
        vast.url, vast.api_key                              # for VAST_URL and VAST_API_KEY
        row = vast.rent(ssh_key.with_suffix(".pub").read_text(), label="mine")      # made without the API; it runs
        vast.ssh(row["id"], ssh_key, "nvidia-smi")          # CompletedProcess, for what a test wants to see inside

What it tells (all take effect or answer at once; `ident` is the contract id):

    vast.requests                 list of Request(method, path, query, body, authorized, at)
    vast.calls("PUT", "/asks/")   those of a method whose path holds this
    vast.instance(ident)          the row as the API gives it, or None; vast.instances() all rows, `start_date` included
    vast.spent()                  dollars so far, destroyed instances included
    vast.offers                   list of offer rows a test may change; OFFERS has the ones it starts with. Change
                                  `dph_base`: a search adds the `storage_cost` of the disk asked for to it
    vast.boot_seconds             how long the next instances take from created to running (reset to 0.2 for every test)
    vast.wait_status(ident, "running", seconds=20)
    vast.host(ident)              Host: .pid (its init, a pid of this machine), .root (its files; .root / "opt" is its
                                  /opt), .address, .port, .proxy_port, .ssh_pids(), .processes(), .onstart_log

What it does on demand:

    vast.reset()                  destroys all instances, clears faults, requests, keys and money
    vast.faults                   Faults, plain attributes, see tests/vast/fake/faults.py:
        offers_gone = 2                  the next two creates answer 410 no_such_ask, and these offers go away
        create_unavailable = 1           the next create answers 503 and has made the instance; the offer stays, and
                                         a retry makes another instance
        create_unavailable_empty = 1     the next create answers 503 and has made none
        create_cut = 1                   the next create makes the instance and cuts the connection
        create_refused = 1               the next create answers 200 with success false
        create_seconds = 0.0             how long a create takes to answer
        end_state = "exited" | "offline" | "unknown" | "loading"     where the next instances get stuck (None: running)
        status_msg = "..."               what such an instance says; a requirement error by default
        ssh_key_seconds = 0.0            how late keys reach an instance
        rate_limited = 3, broken = 3     the next calls answer 429 (plain text, no Retry-After), 500
        min_interval = 0.0               calls that come sooner than this many seconds after the last of a kind: 429
        paths = ""                       restricts rate_limited and broken to paths that hold this
        destroy_refused = 1              the next destroys answer 200 with success false
        destroy_ignored = 1              the next destroys answer success and do nothing
        odd = 2, odd_status = 200, odd_body = "..."    the next calls (of `paths`) answer this, by default an HTML page
        retry_after = "2"                what the 429 say in Retry-After
        unlisted = 3                     the next lists of instances are empty
        row = {"ports": None}            laid over every row of an instance
        start_refused = 1                the next starts answer 200 with success false: no money
        away = True                      calls are cut without an answer until it is False again; none is recorded
        clock_seconds = 3600.0           how far the service's clock is ahead, in start_date and end_date
        auth_status = 401                what a wrong key gets; 404 is the other possibility
    vast.machine = Machine(shm_mib=64)       what the next instances are made of: gpu="NVIDIA GeForce RTX 4090",
                                  gpu_count=1, memory_mib=24564, driver="580.95.05", nvidia_smi=True, shm_mib=256,
                                  rsync=True, apt=True, triton=True, direct=True   (apt: `apt-get install rsync` works)
    vast.cut(ident)               every ssh connection dies
    vast.freeze(ident), vast.thaw(ident)     ssh connections, running and new ones, stay silent
    vast.refuse(ident, True)      nobody listens on its addresses (False: again); proxy=False leaves the proxy alone
    vast.change_host_key(ident)
    vast.move(ident)              another port (and `address="127.0.0.2"`), connections die
    vast.hide_rsync(ident)        /usr/bin/rsync is gone
    vast.crash(ident)             the machine's processes die, the API goes on calling it `running`
    vast.vanish(ident)            the instance is gone from the API as well
    vast.set_status(ident, "exited", "what it says")
    vast.interrupt(ident)         somebody bids more for an interruptible instance; its disk stays and costs
    vast.stop(ident)              Vast.ai stops it, as it does when the account's money is gone

The same for a test in another process, authenticated like everything else: `POST {url}/_control/<method>` with the
arguments as a JSON object, e.g. `/_control/freeze {"ident": 7835610}`; `PATCH /_control/faults` and
`PATCH /_control/machine` set attributes; `GET /_control/state` gives requests, instances, faults and spent.

Fixtures of tests/vast/conftest.py: `vast` (FakeVast, shared by the session, reset for every test), `ssh_key` (Path of a
fresh private key, `.pub` beside it), `vast_env` (dict[str, str] for a subprocess: os.environ without settings of ours,
plus VAST_URL, VAST_API_KEY, SSH_KEY, LOCAL_DIR, XDG_*_HOME, VASTAI_NO_UPDATE_CHECK, VAST_POLL_SECONDS).

`python -m tests.vast` runs it in the foreground.
"""

from tests.vast.fake.faults import Faults, Machine
from tests.vast.fake.market import OFFERS
from tests.vast.fake.service import FakeVast
from tests.vast.fake.world import Request

__all__ = ["OFFERS", "FakeVast", "Faults", "Machine", "Request"]
