"""The bash scripts that run on an instance. They travel over standard input: see ssh.wrapped."""

import shlex

DIRECTORY = "/opt/triton"
MODELS = "/opt/models"
BINARY = "/opt/tritonserver/bin/tritonserver"
LOG = f"{DIRECTORY}/tritonserver.log"
STAGING = f"{DIRECTORY}/staging"
INCOMING = f"{DIRECTORY}/incoming"
PREVIOUS = f"{DIRECTORY}/previous"
DIGESTS = f"{DIRECTORY}/digests"

# Members of the session that Triton leads: its stubs, and their engines, which outlive a stub that is killed.
# Each line is a pid and its parent; the leader itself is not among them.
_SESSION = """
session() {
  local file stat
  for file in /proc/[0-9]*/stat; do
    read -r stat 2>/dev/null <"$file" || continue
    set -- "$1" "${stat%% *}" ${stat##*) }
    if [ "$6" = "$1" ] && [ "$2" != "$1" ] && [ "$3" != Z ]; then echo "$2 $4"; fi
  done
}
"""

# A pid alone may by now belong to another process: its start time, field 22 of stat, tells them apart.
_COMMON = f"""
set -u
{_SESSION}
umask 077
mkdir -p {DIRECTORY} {MODELS}
born() {{ local stat; stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; set -- ${{stat##*) }}; echo "${{20}}"; }}
running() {{
  local pid time
  read -r pid time 2>/dev/null <{DIRECTORY}/tritonserver.pid || return 1
  [ -n "$time" ] && [ "$(born "$pid")" = "$time" ] && [ "$(state "$pid")" != Z ] && echo "$pid"
}}
state() {{ local stat; stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; set -- ${{stat##*) }}; echo "$1"; }}
# The number of a session is not given to a new process while the session has members.
end_session() {{
  local pid time members
  read -r pid time 2>/dev/null <{DIRECTORY}/tritonserver.pid || return 0
  if [ -e "/proc/$pid" ] && [ "$(born "$pid")" != "$time" ]; then return 0; fi
  while members=$(session "$pid" | cut -d ' ' -f 1); [ -n "$members" ]; do
    kill -KILL $members 2>/dev/null
    sleep 0.1
  done
  rm -f /dev/shm/triton_python_backend_shm_region_*
}}
live() {{
  local line=
  exec 3<>"/dev/tcp/127.0.0.1/$http_port" || return 1
  printf 'GET /v2/health/live HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3
  read -r -t 5 line <&3
  exec 3>&-
  case $line in *" 200 "*) return 0 ;; esac
  return 1
}} 2>/dev/null
"""

STATUS = f"""{_COMMON}
echo "pid=$(running)"
if live; then echo live=yes; fi
"""

FACTS = f"""{_COMMON}
gpus=$(nvidia-smi --query-gpu=driver_version,name,memory.total --format=csv,noheader 2>/dev/null | tr '\\n' ';')
echo "gpus=$gpus"
echo "shm_kib=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {{ print $2 }}')"
echo "disk_kib=$(df -Pk /opt 2>/dev/null | awk 'NR == 2 {{ print $4 }}')"
if [ -x {BINARY} ]; then echo binary=yes; fi
if [ -f {DIRECTORY}/triton.env ]; then echo environment=yes; fi
"""

# Becomes tritonserver. What it leaves running beside it keeps the log and one older part of it within bounds while the
# server lives, and starts before the environment is read that holds secrets. Triton appends, so a log that is
# emptied under its hands begins anew; where there is no room for the older part, it is dropped.
# It also ends engines whose stub was killed: they hold the GPU that the model needs when it is loaded again.
_SERVE = f"""
{_SESSION}
bytes=$1 seconds=$2
shift 2
(
  while sleep "$seconds" && [ -e /proc/$$/exe ]; do
    own=$BASHPID
    for orphan in $(session $$ | awk -v leader=$$ -v own="$own" '
      {{ parent[$1] = $2 }}
      END {{ for (pid in parent) if (pid != own && parent[pid] != leader && !(parent[pid] in parent)) print pid }}'
    ); do kill -KILL "$orphan" 2>/dev/null; done
    if [ "$(stat -c %s {LOG})" -gt "$bytes" ]; then
      cp -f {LOG} {LOG}.1 || rm -f {LOG}.1
      : >{LOG}
    fi
  done </dev/null >/dev/null 2>&1 &
)
if [ -f triton.env ]; then . ./triton.env; fi
exec {BINARY} "$@"
"""

START = f"""{_COMMON}
cd {DIRECTORY}
pid=$(running)
if [ -z "$pid" ]; then
  end_session
  if [ -f {LOG} ]; then mv -f {LOG} {LOG}.1; fi
  eval "set -- $log_bytes $watch_seconds $arguments"
  ( exec setsid nohup bash -c {shlex.quote(_SERVE)} tritonserver "$@" >>{LOG} 2>&1 </dev/null ) &
  pid=$!
  echo "$pid $(born "$pid")" >tritonserver.pid
fi
end=$((SECONDS + seconds))
result=late
while [ "$SECONDS" -lt "$end" ]; do
  if [ -z "$(running)" ]; then result=ended; break; fi
  if live; then result=live; break; fi
  sleep 0.2
done
echo "pid=$pid"
echo "result=$result"
if [ -s {LOG} ]; then echo log=yes; fi
"""

# Triton gets SIGTERM, so that requests in flight finish; what then remains of it and its session is killed.
STOP = f"""{_COMMON}
pid=$(running)
if [ -n "$pid" ]; then
  kill -TERM "$pid"
  end=$((SECONDS + seconds))
  while [ -n "$(running)" ] && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done
  kill -KILL "$pid" 2>/dev/null
  while [ -n "$(running)" ]; do sleep 0.1; done
fi
end_session
rm -f {DIRECTORY}/tritonserver.pid
"""

# The errors may stand far above the end: an unknown flag is followed by the whole usage.
LAST_WORDS = f"""
{{ grep -m 3 -E 'unrecognized option|^E[0-9]{{4}} ' {LOG}; tail -n "$lines" {LOG}; }} | awk '!seen[$0]++'
"""

TAIL = f'[ -f {LOG} ] && tail -n "$lines" {LOG}'
FOLLOW = f'[ -f {LOG} ] && tail -n "$lines" -F {LOG} 2>/dev/null'

# Holds a lock of the instance for as long as somebody at the far end of its input lives.
LOCKED = f"""
mkdir -p {DIRECTORY}
exec 9>{DIRECTORY}/deploy.lock
flock -n 9 || {{ [ $? != 1 ] || {{ echo busy; exit; }}; }}
"""

# Megabytes of the weights' cache, then the last line of the log.
GROWTH = f"""
if [ -f {DIRECTORY}/triton.env ]; then . {DIRECTORY}/triton.env; fi
size=$(du -sm "${{HF_HOME:-${{HOME:-/root}}/.cache/huggingface}}" 2>/dev/null | cut -f 1)
echo "${{size:-0}}"
tail -n 1 {LOG} 2>/dev/null
:
"""

# A digest is written once a model has loaded: it says that models/<name> is good, and what it holds.
SURVEY = f"""{_COMMON}
mkdir -p {STAGING} {PREVIOUS} {DIGESTS} {INCOMING}
if command -v rsync >/dev/null; then echo rsync=yes; fi
if live; then echo live=yes; fi
echo "disk_kib=$(df -Pk {MODELS} | awk 'NR == 2 {{ print $4 }}')"
for file in {DIGESTS}/*; do
  name=${{file##*/}}
  if [ -f "$file" ] && [ -d "{MODELS}/$name" ]; then echo "digest:$name=$(cat "$file")"; fi
done
"""

# The host's own HF_ENDPOINT and HF_TOKEN count where this machine has none.
FETCH = f"""
umask 077
mkdir -p {DIRECTORY}
if ! command -v python3 >/dev/null; then echo '{{"error": "There is no python3 on the instance."}}'; exit; fi
if [ -f {DIRECTORY}/triton.env ]; then . {DIRECTORY}/triton.env; fi
if [ -n "$hf_endpoint" ]; then export HF_ENDPOINT=$hf_endpoint; fi
if [ -n "$hf_token" ]; then export HF_TOKEN=$hf_token; fi
cd {DIRECTORY}
printf %s "$transfer" >transfer.py
printf %s "$download" >download.py
umask 022
python3 download.py <<<"$work"
"""

# Hard links: staging keeps what was sent, so the next deployment sends only what has changed since.
# Interrupted at any line, a repetition comes to the same end: without its digest a served folder is not kept.
SWAP = f"""
set -eu
find {STAGING}/"$name" -name .rsync-partial -prune -exec rm -rf {{}} +
rm -rf {INCOMING}/"$name"
cp -al {STAGING}/"$name" {INCOMING}/"$name"
if [ -f {DIGESTS}/"$name" ] && [ -d {MODELS}/"$name" ]; then
  rm -rf {PREVIOUS}/"$name" {PREVIOUS}/"$name.digest"
  mv {MODELS}/"$name" {PREVIOUS}/"$name"
  mv {DIGESTS}/"$name" {PREVIOUS}/"$name.digest"
fi
rm -rf {DIGESTS}/"$name" {MODELS}/"$name"
mv {INCOMING}/"$name" {MODELS}/"$name"
"""

KEEP = f"""
set -eu
umask 077
printf %s "$digest" >{DIGESTS}/."$name"
mv {DIGESTS}/."$name" {DIGESTS}/"$name"
"""

RESTORE = f"""
set -eu
if [ -d {PREVIOUS}/"$name" ]; then
  rm -rf {MODELS}/"$name"
  mv {PREVIOUS}/"$name" {MODELS}/"$name"
  echo restored
fi
"""

RESTORED = f"""
set -eu
if [ -f {PREVIOUS}/"$name.digest" ]; then mv {PREVIOUS}/"$name.digest" {DIGESTS}/"$name"; fi
"""

SERVED = f"""
cd {MODELS} && for each in */config.pbtxt; do if [ -f "$each" ]; then dirname "$each"; fi; done
"""
