#!/usr/bin/env bash
# Runs the real servers that the integration tests talk to: on loopback, without containers.
# See docs/servers.md; addresses, ports and folders are in tests/servers/env.py.
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
usage: scripts/services.sh COMMAND [NAME...]

  start    install what is missing, start what does not run, wait until it answers
  stop     end the servers, keep their data
  restart  stop and start
  kill     end them at once (SIGKILL), keep their data: for tests of crashes
  wipe     stop, and delete their data
  status   process, address, memory and readiness of each; exit status 3 if one is not ready
  env      shell lines with every address: eval "$(scripts/services.sh env)"

NAME: postgres redis kafka hapi orthanc, and the tools dcmtk dicom3tools chromium validator. Without a name: all.
Environment: ECHO_TEST_<NAME>_PORT, ECHO_CXR_SERVICES_DIR, ECHO_CXR_NO_INSTALL=1 (never call apt-get).
TEXT
}

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$SCRIPTS")
SOURCES=$REPOSITORY/tests/servers

# A module of the package tests/servers, on the system's own Python: needs no virtual environment.
helper() { PYTHONPATH=$REPOSITORY/tests PYTHONDONTWRITEBYTECODE=1 python3 -m "servers.$1" "${@:2}"; }

# This script is about its own servers: an address that points elsewhere must not lead its probes astray.
unset ECHO_TEST_POSTGRES_URL ECHO_TEST_REDIS_URL ECHO_TEST_KAFKA_BOOTSTRAP ECHO_TEST_HAPI_URL ECHO_TEST_ORTHANC_URL \
  ECHO_TEST_ORTHANC_AET ECHO_TEST_VALIDATOR_CP

configuration=$(helper env config)
eval "$configuration"

# shellcheck source=scripts/services/install.sh
. "$SCRIPTS/services/install.sh"
# shellcheck source=scripts/services/servers.sh
. "$SCRIPTS/services/servers.sh"

SERVERS=(postgres redis kafka hapi orthanc)
TOOLS=(dcmtk dicom3tools chromium validator)

say() { printf '%-12s %s\n' "$1" "$2"; }
fail() { printf '%-12s %s\n' "$1" "$2" >&2; return 1; }

is_server() { [[ " ${SERVERS[*]} " == *" $1 "* ]]; }

probe() { helper probe "$@" 2>&1; }

# --- processes -------------------------------------------------------------------------------------------------

# Whether process $2 is one of server $1: the right program, working inside the server's folder.
belongs() {
  local program
  { read -r program < "/proc/$2/comm"; } 2> /dev/null || return 1
  # the program first: that needs no new process, and nearly always settles it
  [ "$program" = "${PROGRAM[$1]}" ] && [[ $(readlink "/proc/$2/cwd")/ == "$SERVICES_DIR/$1/"* ]]
}

# The main process of server $1, if it lives.
main_pid() {
  local pid
  pid=$(cat "$SERVICES_DIR/$1/pid" 2> /dev/null) && [ -n "$pid" ] && belongs "$1" "$pid" && echo "$pid"
}

# All processes of server $1, also those whose parent died.
all_pids() {
  local entry
  for entry in /proc/[0-9]*; do
    if belongs "$1" "${entry#/proc/}"; then echo "${entry#/proc/}"; fi
  done
}

# Wait up to $2 seconds until no process of server $1 is left.
wait_gone() {
  local end=$((SECONDS + $2))
  while [ -n "$(all_pids "$1")" ]; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# One lock per server: two callers never start or stop the same one at a time. Given back when the subshell ends.
lock() {
  mkdir -p "$SERVICES_DIR/$1"
  exec 9> "$SERVICES_DIR/$1/lock"
  flock -w 900 9 || fail "$1" "another caller holds $SERVICES_DIR/$1/lock"
}

# --- commands --------------------------------------------------------------------------------------------------

start_server() (
  name=$1
  folder=$SERVICES_DIR/$name
  lock "$name"
  if main_pid "$name" > /dev/null; then
    answer=$(probe "$name" --wait 120) || fail "$name" "runs but does not answer: $answer"
    say "$name" "runs already: $answer"
    exit
  fi
  # without their main process the others end by themselves
  wait_gone "$name" 60 || fail "$name" "processes of an earlier run are still there; run: scripts/services.sh stop $name"
  need "$name"
  for port in $(ports_of "$name"); do
    if (: <> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      fail "$name" "port $port is in use by another process; end that one or set another port (docs/servers.md)"
    fi
  done
  begin=$SECONDS
  "prepare_$name" > "$folder/prepare.log" 2>&1 & # as a job, because `set -e` does not hold inside a condition
  if ! wait $!; then
    tail -n 20 "$folder/prepare.log" >&2
    fail "$name" "could not be set up; see $folder/prepare.log"
  fi
  prepared=$((SECONDS - begin)) begin=$SECONDS
  command_of "$name" # sets COMMAND
  cd "$folder"
  setsid nohup "${COMMAND[@]}" >> "$folder/$name.log" 2>&1 < /dev/null 9>&- &
  pid=$!
  echo "$pid" > "$folder/pid"
  if ! answer=$(probe "$name" --wait "$(patience_of "$name")" --pid "$pid"); then
    tail -n 20 "$folder/$name.log" >&2
    fail "$name" "not ready: $answer; see $folder/$name.log"
  fi
  "warm_$name" || fail "$name" "answers, but not as it should; see $folder/$name.log"
  took="ready in $((SECONDS - begin)) s"
  [ "$prepared" -lt 2 ] || took+=", after $prepared s of setting up"
  say "$name" "$took: $answer"
)

start_tool() (
  name=$1
  need "$name"
  if [ "$name" = validator ]; then
    build_java validator "$VALIDATOR_JAVA" || fail "$name" "could not be built; see the lines above"
  fi
  answer=$(probe "$name") || fail "$name" "$answer"
  say "$name" "$answer"
)

start() {
  local name job jobs=() failed=0
  mkdir -p "$SERVICES_DIR" "$CACHE_DIR"
  if [ -L "$SERVICES_DIR" ] || [ ! -O "$SERVICES_DIR" ]; then
    fail services "$SERVICES_DIR belongs to somebody else"
    return 1
  fi
  install_packages "$@"
  for name in "$@"; do # together: the slowest one decides how long it takes
    if is_server "$name"; then start_server "$name" & else start_tool "$name" & fi
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return $failed
}

# $1: the server; $2: yes for SIGKILL
stop_server() (
  name=$1
  [ -d "$SERVICES_DIR/$name" ] || exit 0
  lock "$name"
  signal=$(stop_signal_of "$name")
  [ "${2:-}" != yes ] || signal=KILL
  pid=$(main_pid "$name") || pid=
  if [ -n "$pid" ]; then
    kill -s "$signal" "$pid"
    # children notice that the main process is gone; on the gentle way everything has 30 s
    if [ "$signal" = KILL ]; then wait_gone "$name" 5 || true; else wait_gone "$name" 30 || true; fi
  fi
  mapfile -t left < <(all_pids "$name")
  if [ ${#left[@]} -gt 0 ]; then
    kill -s KILL "${left[@]}" 2> /dev/null || true # it may have ended by itself in between
    wait_gone "$name" 60 || fail "$name" "process ${left[*]} does not end"
  fi
  rm -f "$SERVICES_DIR/$name/pid"
  if [ -n "$pid" ]; then say "$name" "stopped ($signal, process $pid)"; else say "$name" "did not run"; fi
)

stop() {
  local name job jobs=() failed=0
  for name in "$@"; do
    is_server "$name" || continue
    stop_server "$name" "${KILL:-no}" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return $failed
}

wipe() {
  local name
  stop "$@"
  for name in "$@"; do
    if is_server "$name"; then rm -rf "${SERVICES_DIR:?}/$name"; fi
  done
  if [ -d "$SERVICES_DIR" ]; then rmdir --ignore-fail-on-non-empty "$SERVICES_DIR"; fi
}

# Resident memory of all processes of server $1, MiB.
memory_of() {
  local pid total=0
  for pid in $(all_pids "$1"); do
    total=$((total + $(awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2> /dev/null || echo 0)))
  done
  echo $((total / 1024))
}

status() {
  local name pid answer memory result=0
  printf '%-12s %-8s %-13s %6s  %s\n' NAME PROCESS PORT MiB STATE
  for name in "$@"; do
    pid=- memory=-
    if is_server "$name" && pid=$(main_pid "$name" || echo -) && [ "$pid" != - ]; then memory=$(memory_of "$name"); fi
    if ! answer=$(probe "$name"); then
      result=3
      answer="not ready: $answer"
    elif is_server "$name" && [ "$pid" = - ]; then
      answer+=" (not started by this script)"
    fi
    printf '%-12s %-8s %-13s %6s  %s\n' "$name" "$pid" "$(ports_of "$name" | tr ' ' ,)" "$memory" "$answer"
  done
  return $result
}

command=${1:-}
[ $# -eq 0 ] || shift
for name in "$@"; do
  if [[ " ${SERVERS[*]} ${TOOLS[*]} " != *" $name "* ]]; then
    usage >&2
    exit 2
  fi
done
[ $# -gt 0 ] || set -- "${SERVERS[@]}" "${TOOLS[@]}"

case $command in
  start) start "$@" ;;
  stop) stop "$@" ;;
  kill) KILL=yes stop "$@" ;;
  restart) stop "$@" && start "$@" ;;
  wipe) wipe "$@" ;;
  status) status "$@" ;;
  env) helper env env ;;
  help | -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
