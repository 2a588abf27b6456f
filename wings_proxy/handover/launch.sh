# shellcheck shell=sh
# Runs the engine as this container's main process and tells the sidecar, through the directory this file lies in:
#   engine.alive   a FIFO held open until this script is gone, however it goes; a byte in it means "read the status"
#   engine.status  one line of JSON: run, generation, phase, asked, code, started, changed
#   engine.log     what the engine prints (also on standard output); engine.log.1 is the run before
#   hold           written by the sidecar: the run it names may have requests in flight, so do not end it yet
# A volume that is full, read-only or gone costs the sidecar information, never the engine its life.
# POSIX sh, coreutils and util-linux only. No `set -e`: here every failure has an answer. All names start with wings_,
# so that no variable the container's owner exported for the engine is touched.
: "${wings_generation:?rendered by wings-proxy}" "${wings_release_seconds:?}" "${wings_stop_seconds:?}"

# First of all, because a process number 1 without a trap loses the signal. While wings_busy is set only a note is
# taken; the main path looks at it. One signal is enough, and more would only shake `wait`: all but SIGQUIT, which means
# "now", are ignored from then on. SIGHUP is not for us.
wings_busy=1
wings_asked=false
wings_leader=
wings_stopping=
trap 'trap "" TERM INT; wings_asked=true; [ -n "$wings_busy" ] || wings_stop' TERM INT
trap 'wings_asked=true; wings_kill' QUIT
trap '' HUP
umask 022

wings_dir=${0%/*}
[ "$wings_dir" != "$0" ] || wings_dir=.
wings_log=$wings_dir/engine.log

# wings_record PHASE CODE: replace the status in one step, then ring. On a full volume the last run's log makes room,
# then the old status does. The bell has a time limit: a FIFO that somebody filled up would block this script for ever.
wings_record() {
  wings_line=$(
    printf '{"run": "%s", "generation": "%s", "phase": "%s", "asked": %s, "code": %s' \
      "$wings_run" "$wings_generation" "$1" "$wings_asked" "$2"
    printf ', "started": %s, "changed": %s}' "$wings_started" "$(date +%s)"
  )
  wings_replace ||
    { rm -f "$wings_log.1" && wings_replace; } ||
    { rm -f "$wings_dir/engine.status" && wings_replace; } ||
    rm -f "$wings_dir/.engine.status.$wings_run"
  timeout -s KILL 1 printf . >&9
} 2>/dev/null

wings_replace() {
  printf '%s\n' "$wings_line" >"$wings_dir/.engine.status.$wings_run" &&
    mv -fT "$wings_dir/.engine.status.$wings_run" "$wings_dir/engine.status"
}

# wings_clock: seconds that never jump, in wings_now.
wings_clock() {
  IFS=. read -r wings_now _ </proc/uptime || wings_now=$(date +%s)
} 2>/dev/null

wings_held() {
  wings_holder=
  [ -f "$wings_dir/hold" ] || return 1
  IFS= read -r wings_holder <"$wings_dir/hold"
  [ "$wings_holder" = "${wings_run:-unknown}" ]
} 2>/dev/null

# The whole group: engines leave workers behind that keep the accelerator's memory (vLLM does).
wings_kill() {
  [ -z "$wings_leader" ] || kill -s KILL -- "-$wings_leader" "$wings_leader"
} 2>/dev/null

# wings_stop: somebody asked for the end. Say so *before* looking at `hold`: the sidecar writes `hold` before it looks
# at the status, so one of the two always sees the other. The rest happens in the background, started from the trap
# itself: a signal that lands just before `wait` would otherwise be noticed only when the engine ends by itself.
wings_stop() {
  [ -z "$wings_stopping" ] || return 0
  wings_stopping=1
  wings_record stop_requested null
  wings_release >/dev/null 2>&1 &
  wings_releaser=$!
}

# SIGTERM goes to the leader alone: vLLM's core must outlive its server's own shutdown. Signals are ignored here because
# a terminal, for one, sends them to everybody, and this must go on to its end. Clocks count whole seconds: -le waits
# at least as long as was asked.
wings_release() {
  trap '' TERM INT HUP QUIT
  exec 9>&-
  wings_clock
  wings_deadline=$((wings_now + wings_release_seconds))
  while wings_held && [ "$wings_now" -le "$wings_deadline" ]; do
    sleep 0.2 || sleep 1
    wings_clock
  done
  kill -s TERM "$wings_leader"
  wings_clock
  wings_deadline=$((wings_now + wings_stop_seconds))
  while kill -s 0 "$wings_leader" && [ "$wings_now" -le "$wings_deadline" ]; do
    sleep 0.2 || sleep 1
    wings_clock
  done
  wings_kill
}

# wings_keep_log PIPE: append the pipe to engine.log. dd writes each line as it comes and stops by itself after as many
# blocks as there is room for; then the next block begins a new file, so that a log whose engine falls silent or dies
# keeps its last words. When nothing can be written the pipe is still emptied, so that nobody behind it ever waits; then
# the file gets another chance.
wings_keep_log() {
  exec <"$1"
  rm -f "$1"
  while :; do
    wings_size=$(stat -L -c %s "$wings_log") || wings_size=0
    wings_blocks=$(((wings_share - wings_size) / 4096))
    if [ "$wings_blocks" -ge 1 ]; then
      wings_copy "$wings_log" "$wings_blocks"
    elif wings_copy "$wings_dir/.engine.log.$wings_run" 1; then
      mv -fT "$wings_dir/.engine.log.$wings_run" "$wings_log"
    else
      rm -f "$wings_dir/.engine.log.$wings_run"
      true >"$wings_log"
    fi || { timeout -s KILL 5 cat >/dev/null && return; }
  done
} 2>/dev/null

# wings_copy FILE BLOCKS: append standard input to the file; ends wings_keep_log when there is no more.
wings_copy() {
  wings_report=$(LC_ALL=C dd bs=4096 count="$2" 2>&1 >>"$1") || return 1
  case $wings_report in "0+0 "*)
    rm -f "$wings_dir/.engine.log.$wings_run"
    exit
    ;;
  esac
}

# The log's share of the volume: an eighth, so that this run's and the last one's take a quarter; never above 16 MiB
# (the size limit of an emptyDir on disk is not to be seen from inside, and going over it evicts the pod).
wings_measure() {
  wings_share=$(stat -f -c '%S %b' "$wings_dir") || wings_share='0 0'
  wings_share=$((${wings_share% *} * ${wings_share#* } / 8))
  if [ "$wings_share" -le 0 ] || [ "$wings_share" -gt 16777216 ]; then wings_share=16777216; fi
} 2>/dev/null

# wings_open_log: afterwards descriptor 6 is where the engine writes. The engine's output goes through a pipe so that a
# full volume is never the engine's problem: tee ignores SIGPIPE, and behind it `cat` goes on if both its ends are gone.
wings_tee=
wings_keeper=
wings_open_log() {
  wings_pipe=$wings_dir/.engine.pipe.$wings_run
  wings_measure
  # shellcheck disable=SC2094 # three ends of one pipe: with the first open, the other two do not wait for each other
  if [ "$wings_share" -ge 4096 ] && true >>"$wings_log" && mkfifo -m 600 "$wings_pipe" "$wings_pipe.log" &&
    command exec 8<>"$wings_pipe" 7<"$wings_pipe" 6>"$wings_pipe" 8>&-; then
    rm -f "$wings_pipe"
    (
      trap '' PIPE TERM INT HUP QUIT
      exec 6>&- 7<&- 9>&-
      wings_keep_log "$wings_pipe.log"
    ) >/dev/null &
    wings_keeper=$!
    (
      trap '' PIPE TERM INT HUP QUIT
      exec 0<&7 6>&- 7<&- 9>&-
      tee "$wings_pipe.log"
      exec cat >/dev/null
    ) &
    wings_tee=$!
  else
    rm -f "$wings_pipe" "$wings_pipe.log"
    command exec 6>&1 7</dev/null || command exec 6>/dev/null 7</dev/null
  fi
} 2>/dev/null

# wings_settle: an engine that ends as asked may be outlived for a moment by what cleans up after it (Python's resource
# tracker removes the shared memory of vLLM's processes); without that moment /dev/shm fills up run by run.
wings_settle() {
  wings_looks=5
  while [ "$wings_looks" -gt 0 ] && kill -s 0 -- "-$wings_leader"; do
    sleep 0.2 || sleep 1
    wings_looks=$((wings_looks - 1))
  done
} 2>/dev/null

# wings_bury: after an end nobody asked for, kill what is left of the engine but Python's resource trackers. They wait
# for the end of everybody else and then remove the shared memory of exactly these processes: 420 MB of names for each
# run of vLLM that was killed, and what was written to them is memory. What else calls itself so has a second.
wings_bury() {
  wings_looks=20
  while kill -s 0 -- "-$wings_leader" && wings_spare_trackers && [ "$wings_looks" -gt 0 ]; do
    sleep 0.05 || sleep 1
    wings_looks=$((wings_looks - 1))
  done
} 2>/dev/null

# wings_spare_trackers: kill the rest of the engine's group; true if a tracker is still at work. All processes' lines at
# once, for `read` of a shell takes a system call for each letter; a line is `pid (name) state parent group ...`, and a
# name may hold anything.
wings_spare_trackers() {
  wings_spared=
  wings_lines=$(cat /proc/[0-9]*/stat)
  set -f
  IFS='
'
  # shellcheck disable=SC2086 # lines
  set -- $wings_lines
  unset IFS
  set +f
  for wings_line in "$@"; do
    wings_process=${wings_line%% *}
    wings_state=${wings_line##*) }
    wings_group=${wings_state#* * }
    case $wings_process,${wings_group%% *},$wings_state in
      *[!0-9]*,"$wings_leader",* | *,"$wings_leader",Z*) continue ;;
      *,"$wings_leader",*) ;;
      *) continue ;;
    esac
    wings_words=
    IFS= read -r wings_words <"/proc/$wings_process/cmdline"
    case $wings_words in
      *multiprocessing.resource_tracker*) wings_spared=1 ;;
      *) kill -s KILL "$wings_process" ;;
    esac
  done
  [ -n "$wings_spared" ]
}

# wings_flush CODE: let the last words reach the log before the end is told: whoever hears of it reads them for the
# reason. Bounded, for a process that left the group may hold the pipe: after half a second the end is told anyway.
wings_flush() {
  [ -n "$wings_tee" ] || return 0
  (
    sleep 0.5 || sleep 1
    wings_record exited "$1"
    sleep 0.5 || sleep 1
    kill -s KILL "$wings_tee" "$wings_keeper"
  ) >/dev/null &
  wings_timer=$!
  wait "$wings_tee"
  wait "$wings_keeper"
  kill -s KILL "$wings_timer"
} 2>/dev/null

# wings_finish CODE: nothing can be asked of us any more. An end nobody asked for is a failure whatever the engine says
# (vLLM exits 0 after its core died); an engine that ended by the SIGTERM it was sent ended well.
wings_finish() {
  trap '' TERM INT HUP QUIT
  [ -z "$wings_stopping" ] || kill -s KILL "$wings_releaser" 2>/dev/null
  if [ -n "$wings_leader" ]; then
    if [ "$wings_asked" = true ]; then wings_settle; else wings_bury; fi
  fi
  wings_kill
  wings_flush "$1"
  wings_record exited "$1"
  case $wings_asked,$1 in
    true,143) exit 0 ;;
    false,0) exit 1 ;;
  esac
  exit "$1"
}

read -r wings_run </proc/sys/kernel/random/uuid
wings_started=$(date +%s)

# What an earlier run left half done, then a new FIFO, held open before anybody can see it.
rm -f "$wings_dir"/.engine.* 2>/dev/null
mkfifo "$wings_dir/.engine.alive.$wings_run" 2>/dev/null
if [ -p "$wings_dir/.engine.alive.$wings_run" ] && command exec 9<>"$wings_dir/.engine.alive.$wings_run"; then
  mv -fT "$wings_dir/.engine.alive.$wings_run" "$wings_dir/engine.alive" 2>/dev/null
else
  # Rather none than the last run's: its end of file would be taken for our end.
  rm -f "$wings_dir/engine.alive" 2>/dev/null
  exec 9>/dev/null
fi
# A link or a FIFO in the log's place goes: the one would write elsewhere, the other never begin.
if [ -f "$wings_log" ] && [ ! -L "$wings_log" ]; then
  mv -fT "$wings_log" "$wings_log.1"
else
  rm -f "$wings_log"
fi 2>/dev/null
[ "$wings_asked" = true ] || wings_record running null
wings_open_log

[ "$wings_asked" = false ] || wings_finish 143

# A shell starts background commands with SIGINT and SIGQUIT ignored for good; env(1) of newer coreutils undoes that.
if env --default-signal=INT,QUIT true 2>/dev/null; then
  set -- env --default-signal=INT,QUIT -- "$@"
else
  set -- env -- "$@"
fi
(
  trap - TERM INT HUP QUIT
  exec setsid "$@"
) >&6 2>&1 6>&- 7<&- 9>&- &
wings_leader=$!
exec 6>&- 7<&-
wings_busy=
[ "$wings_asked" = false ] || wings_stop

# `wait` also returns, with a code above 128, when a trap ran: then the engine is still there, or has ended since.
# Asking once more tells its own code; 127 means that the shell, having told it before, has forgotten it. In between a
# `wait` for nothing, on which bash can spend an interruption it still has in mind.
while :; do
  wait "$wings_leader"
  wings_code=$?
  if [ "$wings_code" -le 128 ] || ! kill -s 0 "$wings_leader" 2>/dev/null; then break; fi
done
trap '' TERM INT HUP QUIT
if [ "$wings_code" -gt 128 ]; then
  true &
  wait $!
  wait "$wings_leader" 2>/dev/null
  wings_again=$?
  [ "$wings_again" -eq 127 ] || wings_code=$wings_again
fi
wings_finish "$wings_code"
