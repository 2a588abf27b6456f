"""Each guard is there for its test: taken away, in a copy of the package, the test of its fault fails.

`make mutations` does all of them and prints the table. A guard that is not where this file says, a test that fails with
all guards in place, and a test that passes without its guard are each an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Mutation:
    file: str
    """Of the package."""
    guard: str
    """What stands there."""
    without: str
    """What is put in its place."""
    test: str
    """The test that must fail then."""
    also: tuple[tuple[str, str], ...] = ()
    """Guards of the same file that each stand in for this one, with what is put in their places: all of them go."""

    @property
    def name(self) -> str:
        return f"{self.file}: {self.test.rpartition('::')[2]}"


MUTATIONS = [
    Mutation(
        "server/bounded_connection.py",
        "self._refuse_head(ApiError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True))",
        "pass",
        "tests/faults/test_d_clients.py::test_d45_slow_heads_slow_bodies_and_silence_are_cut",
    ),
    Mutation(
        "proxy/upload.py",
        "self._waited += loop.time() - began\n                self._patience_seconds",
        "self._patience_seconds",
        "tests/faults/test_d_clients.py::test_d45_a_dripping_body_does_not_hold_a_slot_for_ever",
    ),
    Mutation(
        "server/connection_cap.py",
        "if (oldest := next(iter(self._idle), None)) is not None:",
        "if (oldest := next(iter(self._idle), None)) is not None and False:",
        "tests/faults/test_d_clients.py::test_d46_at_the_cap_idle_connections_make_room",
    ),
    Mutation(
        "server/own_answers.py",
        "if request.version not in _VERSIONS:",
        "if False:",
        "tests/faults/test_d_clients.py::test_d48_every_kind_of_request_has_an_answer",
    ),
    Mutation(
        "server/routes.py",
        "self._closed[_bare(path)] = ",
        "_ = ",
        "tests/faults/test_i_security.py::test_i88_administration_is_closed_in_every_spelling",
    ),
    Mutation(
        "server/access.py",
        "if self._authorize is None or path in self._open:",
        "if True:",
        "tests/faults/test_i_security.py::test_i90_no_key_of_ours_is_a_401",
    ),
    Mutation(
        "proxy/headers.py",
        "HOP_BY_HOP | _CORS |",
        "HOP_BY_HOP |",
        "tests/faults/test_i_security.py::test_i93_an_engine_that_allows_every_page_is_not_believed",
    ),
    Mutation(
        "proxy/headers.py",
        "if given is not None and CLEAN_REQUEST_ID.fullmatch(given):",
        "if given is not None:",
        "tests/faults/test_i_security.py::test_i91_a_hostile_request_id_is_replaced",
    ),
    Mutation(
        "proxy/admission.py",
        'if (upgrade := fields.get(b"upgrade")) is not None and',
        "if False and",
        "tests/faults/test_d_clients.py::test_d48_every_kind_of_request_has_an_answer",
    ),
    Mutation(
        "handover/atomic_file.py",
        "os.fsync(descriptor)",
        "pass",
        "tests/faults/test_b_volume.py::test_b29_the_file_is_on_the_disk_before_its_name_is",
    ),
    # A link in the log's place is refused three times over; only the last guard also sees what comes between look and
    # open, and so falls alone.
    Mutation(
        "lifecycle/log_tail.py",
        "if not stat.S_ISREG(there.st_mode):",
        "if False:",
        "tests/faults/test_b_volume.py::test_b34_a_log_that_does_everything_a_log_should_not",
        also=(
            ("os.O_NOFOLLOW | ", ""),
            ("if (there.st_dev, there.st_ino) != identity:", "if False:"),
        ),
    ),
    Mutation(
        "lifecycle/log_tail.py",
        "if (there.st_dev, there.st_ino) != identity:",
        "if False:",
        "tests/lifecycle/test_log_tail.py::test_what_takes_its_place_between_look_and_open_is_not_read",
    ),
    Mutation(
        "lifecycle/log_tail.py",
        "os.O_NONBLOCK | ",
        "",
        "tests/lifecycle/test_log_tail.py::test_a_pipe_that_takes_its_place_between_look_and_open_is_not_waited_for",
    ),
    Mutation(
        "engines/log_stats.py",
        "if field and _NUMBER.fullmatch(text):",
        "if field and _NUMBER.match(text):",
        "tests/engines/test_log_stats.py::test_a_field_of_sglang_is_its_name_and_a_short_number_from_end_to_end",
    ),
    Mutation(
        "engines/log_stats.py",
        "head = _VLLM_HEAD.match(line)",
        "head = _VLLM_HEAD.search(line)",
        "tests/faults/test_h_telemetry.py::test_h79_where_it_has_none_a_line_in_a_prompt_moves_no_gauge",
    ),
    Mutation(
        "telemetry/engine_scrape.py",
        'if response.headers.get("Content-Encoding", "identity").lower() != "identity":',
        "if False:",
        "tests/faults/test_h_telemetry.py::test_h78_whatever_the_engine_says_our_own_metrics_are_served",
    ),
    Mutation(
        "config/load.py",
        'if whole is not None and len(flag) > len("--"):',
        "if False:",
        "tests/faults/test_f_config.py::test_f65_host_and_port_stay_ours_in_every_spelling",
    ),
    Mutation(
        "config/kinds.py",
        "hide = hide or (",
        "hide = hide or (False and ",
        "tests/faults/test_f_config.py::test_f70_no_secret_reaches_the_script_or_the_screen",
    ),
    Mutation(
        "cli.py",
        "{shown(value, limit=100_000):<40}",
        "{value:<40}",
        "tests/faults/test_f_config.py::test_f65_what_a_terminal_would_act_on_is_shown_escaped",
    ),
    Mutation(
        "handover/volume.py",
        "if self._lock is not None and not self._lock.take(directory):\n            detail",
        "if False:\n            detail",
        "tests/handover/test_volume.py::test_two_sidecars_at_once_take_turns",
    ),
    Mutation(
        "handover/disk_threads.py",
        "thread.join(max(0.0, deadline - time.monotonic()))",
        "thread.join()",
        "tests/handover/test_disk_threads.py::test_a_process_ends_although_a_call_of_it_never_does",
    ),
    Mutation(
        "server/bounded_connection.py",
        "elif untaken and untaken == self._untaken:",
        "elif False:",
        "tests/server/test_bounded_connection.py::test_an_answer_nobody_takes_is_not_kept_for_an_idle_connection",
    ),
    Mutation(
        "server/paced_connection.py",
        "return len(data) <= SLICE_BYTES and self._cut(data) == len(data)",
        "return self._cut(data) == len(data)",
        "tests/server/test_paced_connection.py::test_many_small_chunks_are_parsed_a_little_each_turn",
    ),
    Mutation(
        "server/paced_connection.py",
        "self._late_body = content",
        "pass",
        "tests/server/test_paced_connection.py::test_bodies_that_come_late_are_not_counted_for_ever",
    ),
    Mutation(
        "server/paced_connection.py",
        "        self._reading_paused = True\n",
        "        super().pause_reading()\n",
        "tests/server/test_paced_connection.py::test_a_body_of_very_many_chunks_does_not_stop_the_next_one",
    ),
    Mutation(
        "server/paced_connection.py",
        "if self._slicing or self._reading_paused or self._buffer_paused:",
        "if self._slicing or self._buffer_paused:",
        "tests/server/test_paced_connection.py::test_no_slice_is_parsed_that_nobody_reads",
    ),
    Mutation(
        "server/paced_connection.py",
        "newest = self._messages[-1][1] if self._messages else self._late_body",
        "newest = self._late_body",
        "tests/server/test_paced_connection.py::test_a_body_behind_an_answer_of_ours_is_no_head",
    ),
    Mutation(
        "proxy/upload.py",
        "if not self._pace.take():",
        "if False:",
        "tests/proxy/test_upload.py::test_each_piece_waits_for_its_share_of_the_turn",
    ),
    Mutation(
        "server/bounded_connection.py",
        "        self._drop_quotation()\n        if self._manager",
        "        if self._manager",
        "tests/server/test_own_answers.py::test_what_is_not_http_is_not_kept_as_garbage",
    ),
    Mutation(
        "server/bounded_connection.py",
        "if self._broken:",
        "if False:",
        "tests/server/test_own_answers.py::test_behind_what_is_not_http_nothing_is_parsed",
    ),
    Mutation(
        "server/own_answers.py",
        'if self.transport is not None or not isinstance(kwargs.get("exc_info"), RuntimeError):',
        "if True:",
        "tests/server/test_own_answers.py::test_a_client_that_leaves_inside_a_body_nobody_wanted_is_no_error",
    ),
    Mutation(
        "server/paced_connection.py",
        "            if not isinstance(message, NotHttp) and message.upgrade:",
        "            if False:",
        "tests/server/test_client_connection.py::test_what_came_in_one_piece_with_an_offer_is_not_waited_for",
    ),
    Mutation(
        "proxy/relay.py",
        "if self._events is None or self._remaining or not",
        "if self._events is None or not",
        "tests/proxy/test_forward.py::test_an_engine_that_dies_in_a_stream_of_known_length_is_no_whole_answer",
    ),
    Mutation(
        "proxy/api_errors.py",
        'fields.append((b"Allow", self.allow))',
        "pass",
        "tests/proxy/test_api_errors.py::test_a_method_that_is_none_names_those_there_are",
    ),
    Mutation(
        "serve.py",
        "auto_decompress=False,",
        "",
        "tests/faults/test_i_security.py::test_i94_a_compression_bomb_stays_compressed",
    ),
    Mutation(
        "server/paced_connection.py",
        "elif last is not None and (self._tail != _LAST_CHUNK or len(self._messages) >= _STOPPED):",
        "elif False:",
        "tests/server/test_paced_connection.py::test_a_trailer_is_no_field_of_the_next_request",
    ),
    Mutation(
        "server/paced_connection.py",
        "            if body is not None and body.is_eof():\n                self.end_behind(body)",
        "            pass",
        "tests/server/test_paced_connection.py::test_a_trailer_is_no_field_of_the_next_request",
    ),
    Mutation(
        "server/paced_connection.py",
        " or len(self._messages) >= _STOPPED",
        "",
        "tests/server/test_paced_connection.py::test_where_the_parser_may_have_stopped_nobody_knows_what_it_kept",
    ),
    Mutation(
        "server/paced_connection.py",
        "        self._max_msg_queue_size, self._msg_queue_resume_size = _QUEUE, _QUEUE // 2\n",
        "",
        "tests/server/test_paced_connection.py::test_few_requests_wait_for_their_turns_the_rest_is_not_read",
    ),
    Mutation(
        "server/paced_connection.py",
        "if self._slicing or self._reading_paused or self._buffer_paused:",
        "if self._slicing or self._reading_paused:",
        "tests/server/test_paced_connection.py::test_slices_wait_for_requests_that_wait",
    ),
    Mutation(
        "server/bounded_connection.py",
        "for connection in server.heads.grow(self, size):",
        "for connection in ():",
        "tests/server/test_bounded_connection.py::test_together_unfinished_heads_hold_no_more_than_they_may",
    ),
    Mutation(
        "server/bounded_connection.py",
        "        if not self.is_idle:\n            reset(transport)\n            return\n",
        "",
        "tests/server/test_bounded_connection.py::test_a_head_behind_a_request_that_is_answered_is_bounded_too",
    ),
    Mutation(
        "server/bounded_connection.py",
        "                await self._all_left.wait()",
        "                pass",
        "tests/server/test_bounded_connection.py::test_the_end_waits_for_clients_that_still_read",
    ),
    Mutation(
        "server/bounded_connection.py",
        "                connection.give_up()",
        "                pass",
        "tests/server/test_bounded_connection.py::test_the_end_does_not_wait_for_ever",
    ),
    Mutation(
        "serve.py",
        "patience=lambda: max(_FAREWELL_SECONDS, leave_by - time.monotonic()),",
        "",
        "tests/test_serve.py::test_a_client_that_reads_slowly_has_its_whole_answer_before_we_leave",
    ),
    Mutation(
        "serve.py",
        "        runner.leave()\n",
        "",
        "tests/test_serve.py::test_a_request_that_waits_when_we_are_told_to_stop_ends_its_connection",
    ),
    Mutation(
        "server/own_answers.py",
        "            self.say_no_more()\n",
        "",
        "tests/server/test_own_answers.py::test_a_refusal_is_not_lost_behind_what_follows_it",
    ),
    Mutation(
        "lifecycle/gate.py",
        "            if self.open:\n                return None\n",
        "",
        "tests/faults/test_d_clients.py::test_d52_five_hundred_clients_at_the_moment_of_ready",
    ),
    Mutation(
        "serve.py",
        'group.create_task(api_keys.watch(), name="API key reload") if api_keys is not None else None',
        "None",
        "tests/test_serve.py::test_new_keys_are_in_force_without_a_restart",
    ),
    Mutation(
        "server/listener.py",
        "                loop.remove_reader(sock)\n                self._retries",
        "                self._retries",
        "tests/server/test_listener.py::test_without_descriptors_it_waits_and_goes_on",
    ),
    Mutation(
        "server/listener.py",
        "self._retries[sock] = loop.call_later(_RETRY_SECONDS, loop.add_reader, sock, self._accept, sock)",
        "pass",
        "tests/server/test_listener.py::test_without_descriptors_it_waits_and_goes_on",
    ),
    Mutation(
        "lifecycle/probe.py",
        "while len(body) < _LARGEST_BODY and (part",
        "while (part",
        "tests/lifecycle/test_probe.py::test_an_answer_without_an_end_is_read_no_further_than_it_may_matter",
    ),
    Mutation(
        "lifecycle/probe.py",
        "self._session_there.get(self._base + path, allow_redirects=False)",
        "self._session_there.get(self._base + path)",
        "tests/lifecycle/test_probe.py::test_a_redirect_is_not_followed",
    ),
    Mutation(
        "proxy/headers.py",
        "dropped |= connection_options(named) - _NEVER_NAMED",
        "dropped |= connection_options(named)",
        "tests/faults/test_i_security.py::test_i89_a_client_cannot_name_away_what_we_add",
    ),
    Mutation(
        "telemetry/loop_lag.py",
        "self._lateness.observe(max(0.0, self._clock() - self._due))",
        "self._lateness.observe(0.0)",
        "tests/faults/test_g_resources.py::test_g77_a_blocked_loop_is_survived_and_seen",
    ),
    Mutation(
        "proxy/forward.py",
        "            self._owner.relays.discard(relay)\n",
        "",
        "tests/faults/test_g_resources.py::test_g76_many_requests_leave_no_tasks_and_no_objects_behind",
    ),
    Mutation(
        "proxy/upstream.py",
        "            self._rescue()",
        "            pass",
        "tests/proxy/test_upstream.py::test_an_answer_is_read_even_when_the_next_write_fails",
    ),
    Mutation(
        "server/status.py",
        "return self._clock() - self._came_round_at()",
        "return 0.0",
        "tests/server/test_status.py::test_our_liveness_is_the_supervisors_and_nothing_of_the_engine",
    ),
    Mutation(
        "server/listener.py",
        "for client in [*heard, *self._waiting][:_TAKEN_PER_TURN]:",
        "for client in [*self._waiting][:_TAKEN_PER_TURN]:",
        "tests/server/test_listener.py::test_who_has_something_to_say_is_served_before_who_is_silent",
    ),
    Mutation(
        "server/listener.py",
        "min(_ACCEPTS_PER_TURN, self._most_waiting - len(self._waiting))",
        "_ACCEPTS_PER_TURN",
        "tests/server/test_listener.py::test_no_more_are_accepted_than_may_wait",
    ),
    Mutation(
        "handover/atomic_file.py",
        'temporary = f".{name}.{secrets.token_hex(8)}"',
        "temporary = name",
        "tests/faults/test_b_volume.py::test_b22_killed_at_any_step_the_engine_sees_no_half_a_script",
        also=(("os.O_CREAT | os.O_EXCL", "os.O_CREAT | os.O_TRUNC"),),
    ),
    Mutation(
        "serve.py",
        "StallWatch(config.stall_seconds),\n        clock=time.monotonic,",
        "StallWatch(config.stall_seconds),\n        clock=time.time,",
        "tests/faults/test_e_lifecycle.py::test_e61_a_clock_that_jumps_a_day_moves_nothing_but_timestamps",
        also=(
            (
                "came_round_at=lambda: supervisor.came_round_at,\n        clock=time.monotonic,",
                "came_round_at=lambda: supervisor.came_round_at,\n        clock=time.time,",
            ),
        ),
    ),
    Mutation(
        "telemetry/line_writer.py",
        "if self._given - self._taken + len(data) > self._most_bytes:",
        "if False:",
        "tests/faults/test_g_resources.py::test_g72_lines_that_nobody_reads_are_dropped_and_counted",
    ),
    Mutation(
        "server/runner.py",
        "_UNTAKEN_BYTES: Final = 64 * 1024",
        "_UNTAKEN_BYTES: Final = 64 * 1024 * 1024",
        "tests/faults/test_g_resources.py::test_g74_many_uploads_at_once_stay_within_memory",
    ),
    Mutation(
        "telemetry/log.py",
        'return UNPRINTABLE.sub(lambda found: f"\\\\u{ord(found.group()):04x}", text)',
        "return text",
        "tests/faults/test_h_telemetry.py::test_h86_nothing_forges_a_log_line",
    ),
    Mutation(
        "proxy/api_keys.py",
        "found |= hmac.compare_digest(offered, digest)",
        "found |= offered == digest",
        "tests/faults/test_i_security.py::test_i90_how_long_a_look_takes_tells_nothing",
    ),
]


def copied(directory: Path) -> Path:
    """Copy what a test run needs, so that nothing else is touched."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wings_proxy", directory / "wings_proxy", ignore=ignored)
    # No links: pytest follows them, and would import the package beside the true tests.
    shutil.copytree(ROOT / "tests", directory / "tests", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "setup.cfg", directory)
    return directory


def mutated(directory: Path, mutation: Mutation) -> None:
    """Take the guard away; ValueError if it does not stand there exactly once."""
    path = directory / "wings_proxy" / mutation.file
    text = path.read_text("utf-8")
    for guard, without in ((mutation.guard, mutation.without), *mutation.also):
        if (count := text.count(guard)) != 1:
            raise ValueError(f"{mutation.file}: this guard is there {count} times, not once: {guard}")
        text = text.replace(guard, without)
    path.write_text(text, "utf-8")


def failed_tests(directory: Path, *tests: str, first_only: bool) -> set[str]:
    """Run tests of the copy; return the names of those that failed, all if the run itself broke."""
    stop = ["-x"] if first_only else []
    command = [sys.executable, "-m", "pytest", "-q", *stop, "-p", "no:cacheprovider", "--timeout", "20", "-rfE", *tests]
    environ = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^FAILED (tests/[^ \[\n]+)", done.stdout, re.MULTILINE))
    # 1 is "some failed"; what else there is says that the tests could not be run. One that hung until its time-out may
    # also have an error in its tear-down.
    if done.returncode != (1 if failed else 0):
        raise RuntimeError(
            f"pytest ended with {done.returncode} and named {failed}:\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    return failed


def fails_without_its_guard(mutation: Mutation) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        copy = copied(Path(directory))
        mutated(copy, mutation)
        return mutation.test in failed_tests(copy, mutation.test, first_only=True)


def failing_with_all_guards() -> set[str]:
    with tempfile.TemporaryDirectory() as directory:
        tests = sorted({mutation.test for mutation in MUTATIONS})
        return failed_tests(copied(Path(directory)), *tests, first_only=False)


def main() -> int:
    broken = failing_with_all_guards()
    print(f"with all guards: {len({mutation.test for mutation in MUTATIONS}) - len(broken)} tests pass")
    for test in sorted(broken):
        print(f"FAILS WITH ITS GUARD  {test}")
    wrong = len(broken)
    for mutation in MUTATIONS:
        fails = fails_without_its_guard(mutation)
        wrong += not fails
        print(f"{'fails without it' if fails else 'PASSES WITHOUT IT'}  {mutation.name}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
