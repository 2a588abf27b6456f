"""`llama-server` for a machine that has none: its flags over llama.cpp's own server in the `xllamacpp` wheel.

Only flags whose meaning here is exactly llama-server's are taken; any other ends it with exit code 2, so a
configuration that works with this program works with the real one. Flags: llama.cpp b11549, `tools/server/README.md`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Never

EXIT_LOAD_FAILED: Final = 1
EXIT_USAGE: Final = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        """End with one line instead of the whole usage."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _integer(text: str) -> int:
    """Return a number that llama.cpp's `int` can hold."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if not -(2**31) <= number < 2**31:
        raise argparse.ArgumentTypeError(f"invalid int value: {text} is beyond 2147483647")
    return number


def default_threads() -> int:
    """Return half of the CPUs we may use, at least one.

    llama.cpp's threads spin at a barrier after every layer: one thread more than there are free CPUs slows all of
    them down by far more than it helps, and the sidecar, the client and the rest of the machine need some too.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of llama-server's flags."""
    parser = _Parser(prog="llama-server", allow_abbrev=False, description="llama.cpp's HTTP server (xllamacpp)")
    add = parser.add_argument
    add("-m", "--model", metavar="FILE", required=True, help="model file (GGUF)")
    add("-a", "--alias", metavar="NAME", default="", help="names of the model in the API, comma-separated")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=_integer, metavar="PORT", default=8080, help="port to listen on (%(default)s)")
    add("-c", "--ctx-size", type=_integer, metavar="N", default=0, help="context of all slots, tokens (0: the model's)")
    add("-np", "--parallel", type=_integer, metavar="N", default=1, help="slots: requests served at once (%(default)s)")
    add(
        "-n",
        "--predict",
        "--n-predict",
        type=_integer,
        metavar="N",
        default=-1,
        help="tokens per answer (-1: no limit)",
    )
    add("-b", "--batch-size", type=_integer, metavar="N", default=2048, help="logical batch, tokens (%(default)s)")
    add("-ub", "--ubatch-size", type=_integer, metavar="N", default=512, help="physical batch, tokens (%(default)s)")
    add("-t", "--threads", type=_integer, metavar="N", default=0, help="threads (half of the CPUs)")
    add("-tb", "--threads-batch", type=_integer, metavar="N", default=0, help="threads for the prompt (as --threads)")
    add("--threads-http", type=_integer, metavar="N", default=-1, help="threads for HTTP (chosen by llama.cpp)")
    add("-ngl", "--gpu-layers", "--n-gpu-layers", type=_integer, metavar="N", default=None, help="layers on the GPU")
    add("-to", "--timeout", type=_integer, metavar="S", default=3600, help="socket time-out, seconds (%(default)s)")
    add("--api-key", metavar="KEYS", default="", help="keys clients must send, comma-separated")
    add("--api-key-file", metavar="FILE", type=Path, default=None, help="file with one key a line")
    add("--chat-template", metavar="TEMPLATE", default="", help="chat template instead of the model's")
    add("--metrics", action="store_true", help="serve /metrics")
    add("--props", action="store_true", help="let POST /props change settings")
    add("--slots", action=argparse.BooleanOptionalAction, default=True, help="serve /slots")
    add("--jinja", action=argparse.BooleanOptionalAction, default=True, help="use the model's chat template")
    add("--warmup", action=argparse.BooleanOptionalAction, default=True, help="run the model once before ready")
    add("-cram", "--cache-ram", type=_integer, metavar="MIB", default=8192, help="prompt cache in memory (%(default)s)")
    add("--embedding", "--embeddings", action="store_true", help="serve embeddings only")
    add("-lv", "--verbosity", "--log-verbosity", type=_integer, metavar="N", default=3, help="log level (%(default)s)")
    return parser


def api_keys(flags: argparse.Namespace) -> list[str]:
    """Return the keys of both flags, in order."""
    keys = flags.api_key.split(",")
    if flags.api_key_file is not None:
        keys += flags.api_key_file.read_text(encoding="utf-8").splitlines()
    return [key for key in map(str.strip, keys) if key]


def fill(parameters: Any, flags: argparse.Namespace) -> None:
    """Write the flags into a `CommonParams` of xllamacpp, whose fields are those of llama.cpp's `common_params`."""
    parameters.model.path = flags.model
    parameters.model_alias = {name for name in map(str.strip, flags.alias.split(",")) if name}
    parameters.hostnames = [flags.host]
    parameters.port = flags.port
    parameters.n_ctx = flags.ctx_size
    parameters.n_parallel = flags.parallel
    parameters.n_predict = flags.predict
    parameters.n_batch = flags.batch_size
    parameters.n_ubatch = flags.ubatch_size
    parameters.cpuparams.n_threads = flags.threads if flags.threads > 0 else default_threads()
    parameters.cpuparams_batch.n_threads = (
        flags.threads_batch if flags.threads_batch > 0 else parameters.cpuparams.n_threads
    )
    parameters.n_threads_http = flags.threads_http
    if flags.gpu_layers is not None:
        parameters.n_gpu_layers = flags.gpu_layers
    parameters.timeout_read = parameters.timeout_write = flags.timeout
    parameters.api_keys = api_keys(flags)
    parameters.chat_template = flags.chat_template
    parameters.endpoint_metrics = flags.metrics
    parameters.endpoint_props = flags.props
    parameters.endpoint_slots = flags.slots
    parameters.use_jinja = flags.jinja
    parameters.warmup = flags.warmup
    parameters.cache_ram_mib = flags.cache_ram
    parameters.embedding = flags.embedding
    parameters.verbosity = flags.verbosity


def main(arguments: Sequence[str] | None = None) -> Never:
    """Serve until SIGTERM or SIGINT; the process ends here."""
    flags = make_parser().parse_args(arguments)
    if Path(flags.model).is_dir():
        # llama.cpp itself says the same of it as of an empty file.
        sys.exit(f"llama-server: {flags.model} is a directory, not a GGUF file")
    # llama.cpp logs to stderr; one stream keeps our lines and its lines in order.
    os.dup2(1, 2)
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        sys.exit(f"llama-server: {error}: install it with pip install 'wings-infer[llamacpp]'")
    except ImportError as error:
        sys.exit(f"llama-server: {error}: llama.cpp needs this library of the system (Debian: apt install libgomp1)")
    parameters = xllamacpp.CommonParams()
    try:
        fill(parameters, flags)
    except OSError as error:
        sys.exit(f"llama-server: --api-key-file {flags.api_key_file}: {error.strerror}")
    # Loading is one long call that runs no Python, so no handler of ours either: until it returns, SIGTERM and
    # SIGINT keep their default effect and end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        print(f"llama-server: cannot serve {flags.model} on port {flags.port}: {error}", flush=True)
        # Not os._exit: llama.cpp logs in a thread, and what it failed for is written when its objects are destroyed.
        sys.exit(EXIT_LOAD_FAILED)
    print(f"llama-server: {flags.model} at {server.listening_address}", flush=True)
    _wait_for_stop()
    print("llama-server: stopped", flush=True)
    # Taking the server apart joins its threads, which can hang for minutes (xllamacpp 2026.10.11549).
    os._exit(0)


def _wait_for_stop() -> None:
    """Return at SIGTERM or SIGINT, whichever of llama.cpp's threads the kernel hands it to."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _integer, _frame: None)
    os.read(reader, 1)


if __name__ == "__main__":
    main()
