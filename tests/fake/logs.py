"""What each engine prints: its start, its requests, its statistics, its end."""

from __future__ import annotations

import http
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.fake.counters import Counters
from tests.fake.dialect import CORE_DIED
from tests.fake.settings import FakeSettings, Flavour, Stop
from tests.fake.wire import Request


@dataclass(frozen=True, slots=True)
class Output:
    """Text as the engine writes it: whole lines, or a progress bar that begins with CR and ends without LF."""

    text: str
    stderr: bool = False


class Log:
    """The lines of one engine process; pure but for the clock."""

    def __init__(self, settings: FakeSettings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._pid = os.getpid()
        self._born = time.monotonic()
        # Of the statistics line before: prompt and generation tokens, and whether it was all zero.
        self._before = (0, 0)
        self._quiet = True

    def _line(self, text: str, *, process: str = "APIServer", level: str = "INFO") -> Output:
        match self._settings.flavour:
            case Flavour.VLLM:
                return Output(f"({process} pid={self._pid}) {level} {time.strftime('%m-%d %H:%M:%S')} {text}\n")
            case Flavour.SGLANG:
                return Output(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")
            case Flavour.LLAMACPP:
                micros = int((time.monotonic() - self._born) * 1e6)
                minutes, rest = divmod(micros, 60_000_000)
                stamp = f"{minutes}.{rest // 1_000_000:02}.{rest // 1000 % 1000:03}.{rest % 1000:03}"
                return Output(f"{stamp} {level[0]} {text}\n", stderr=True)

    def start(self, port: int) -> Iterator[Output]:
        """Yield the lines of a start, in order, for the engine to spread over the time it takes."""
        match self._settings.flavour:
            case Flavour.VLLM:
                return self._vllm_start(port)
            case Flavour.SGLANG:
                return self._sglang_start(port)
            case Flavour.LLAMACPP:
                return self._llamacpp_start(port)

    def ready(self, port: int) -> Iterator[Output]:
        """Yield the lines that end a start."""
        match self._settings.flavour:
            case Flavour.VLLM:
                yield Output(f"INFO:     Started server process [{self._pid}]\n", stderr=True)
                yield Output("INFO:     Waiting for application startup.\n", stderr=True)
                yield Output("INFO:     Application startup complete.\n", stderr=True)
            case Flavour.SGLANG:
                yield self._line("The server is fired up and ready to roll!")
            case Flavour.LLAMACPP:
                yield self._line("srv          init: model loaded")
                yield self._line(f"srv          init: listening on http://{self._settings.host}:{port}")

    def _shards(self, title: str) -> Iterator[Output]:
        for done in range(self._settings.shards + 1):
            percent = 100 * done // self._settings.shards
            speed = "?it/s" if done == 0 else "2.41it/s"
            progress = (
                f"{title}: {percent:3}% Completed | {done}/{self._settings.shards} [00:0{min(done, 9)}<00:00, {speed}]"
            )
            yield Output("\r" + progress, stderr=True)
        yield Output("\n\n", stderr=True)

    def _vllm_start(self, port: int) -> Iterator[Output]:
        settings, model = self._settings, self._settings.model
        yield Output(
            "DeprecationWarning: The `python -m vllm.entrypoints.openai.api_server` command is deprecated and may be "
            "removed in a future release. Please use `vllm server` instead.\n  warnings.warn(\n",
            stderr=True,
        )
        for art in ("", "       █     █     █▄   ▄█", " ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.32.0"):
            yield self._line(f"[api_utils.py:347] {art}\r")
        given = {"host": settings.host, "port": port, "model": model, "max_model_len": settings.max_model_len}
        yield self._line(f"[api_utils.py:286] non-default args: {given}")
        yield self._line("[model.py:733] Resolved architecture: Qwen2ForCausalLM")
        yield self._line(f"[model.py:2152] Using max model len {settings.max_model_len}")
        yield self._line(
            f"[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='{model}', dtype=torch.bfloat16",
            process="EngineCore",
        )
        yield self._line(f"[cpu_model_runner.py:68] Starting to load model {model}...", process="Worker")
        yield from self._shards("Loading safetensors checkpoint shards")
        yield self._line("[default_loader.py:501] Loading weights took 0.01 seconds", process="Worker")
        yield self._line("[cpu_model_runner.py:87] Warming up model for the compilation...", process="Worker")
        yield self._line("[cpu_model_runner.py:91] Warming up done.", process="Worker")
        yield self._line(
            "[kv_cache_utils.py:2327] CPU KV cache size: 1,048,576 tokens, Maximum concurrency for 8,192 tokens per "
            "request: 128.00x",
            process="EngineCore",
        )
        took = "init engine (profile, create kv cache, warmup model) took 29.13 s"
        yield self._line(f"[core.py:402] {took}", process="EngineCore")
        yield self._line("[entry.py:136] Supported tasks: ['generate']")
        yield self._line(f"[entry.py:140] Starting vLLM server on http://{settings.host}:{port}")
        yield self._line("[launcher.py:186] Available routes are:")
        yield self._line("[launcher.py:195] Route: /health, Methods: GET")

    def _sglang_start(self, port: int) -> Iterator[Output]:
        settings = self._settings
        given = {"model_path": settings.model, "context_length": settings.max_model_len}
        yield self._line(f"server_args={given}")
        yield self._line("Init parallel begin.")
        yield self._line("Init parallel ends. elapsed=0.04 s")
        yield self._line("Load weight begin. avail mem=20.93 GB")
        yield from self._shards("Multi-thread loading shards")
        yield self._line(
            "Load weight end. elapsed=0.09 s, type=Qwen2ForCausalLM, avail mem=20.92 GB, mem usage=0.01 GB."
        )
        yield self._line(
            "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 65536, K size: 0.03 GB, V size: 0.03 GB"
        )
        yield self._line(f"INFO:     Started server process [{self._pid}]")
        yield self._line("INFO:     Waiting for application startup.")
        yield self._line("INFO:     Application startup complete.")
        yield self._line(f"INFO:     Uvicorn running on http://{settings.host}:{port} (Press CTRL+C to quit)")

    def _llamacpp_start(self, port: int) -> Iterator[Output]:
        settings = self._settings
        yield self._line("srv          init: initializing ...")
        yield self._line("srv          init: loading model")
        yield self._line(f"srv    load_model: loading model '{settings.model}'")
        yield self._line("cmn          init: llama threadpool init, n_threads = 1")
        slots = f"n_slots = {settings.max_num_seqs}, n_ctx_slot = {settings.max_model_len}, kv_unified = 'false'"
        yield self._line(f"srv    load_model: initializing, {slots}")

    def access(self, request: Request, status: int) -> Iterator[Output]:
        """Yield the access line; llama.cpp has none."""
        host, port = request.peer
        if (forwarded := request.header("x-forwarded-for")) is not None:
            host, port = forwarded.split(",")[0].strip(), 0
        phrase = http.HTTPStatus(status).phrase
        asked = f"{request.method} {request.target} {request.version}"
        line = f'INFO:     {host}:{port} - "{asked}" {status} {phrase}'
        match self._settings.flavour:
            case Flavour.VLLM:
                yield Output(line + "\n")
            case Flavour.SGLANG:
                yield self._line(line)
            case Flavour.LLAMACPP:
                return

    def finished(self, number: int, prompt: int, made: int, seconds: float) -> Iterator[Output]:
        """Yield what is printed at the end of each generation: only llama.cpp prints any."""
        if self._settings.flavour is not Flavour.LLAMACPP:
            return
        slot = f"slot print_timing: id  0 | task {number} |"
        for title, count in (("prompt eval time", prompt), ("       eval time", made)):
            each = 1000 * seconds / max(1, count)
            rate = f"({each:8.2f} ms per token, {1000 / max(each, 0.001):8.2f} tokens per second)"
            yield self._line(f"{slot} {title} = {1000 * seconds:10.2f} ms / {count:5} tokens {rate}")

    def statistics(self, seconds: float) -> Iterator[Output]:
        """Yield the statistics line of the last `seconds`; an idle vLLM prints one of zeros, then none."""
        counters = self._counters
        prompt, generation = counters.prompt_tokens - self._before[0], counters.generation_tokens - self._before[1]
        self._before = (counters.prompt_tokens, counters.generation_tokens)
        idle = not (prompt or generation or counters.running or counters.waiting)
        if idle and self._quiet:
            return
        self._quiet = idle
        percent = 100 * counters.cache_ratio
        match self._settings.flavour:
            case Flavour.VLLM:
                hits = 100 * counters.prefix_hits / max(1, counters.prefix_queries)
                yield self._line(
                    f"[loggers.py:335] Engine 000: Avg prompt throughput: {prompt / seconds:.1f} tokens/s, "
                    f"Avg generation throughput: {generation / seconds:.1f} tokens/s, "
                    f"Running: {counters.running} reqs, Waiting: {counters.waiting} reqs, "
                    f"{self._settings.device} KV cache usage: {percent:.1f}%, Prefix cache hit rate: {hits:.1f}%"
                )
            case Flavour.SGLANG:
                yield self._line(
                    f"Decode batch, #running-req: {counters.running}, #token: {counters.cached_tokens}, "
                    f"token usage: {counters.cache_ratio:.2f}, cpu graph: False, "
                    f"gen throughput (token/s): {generation / seconds:.2f}, #queue-req: {counters.waiting}"
                )
            case Flavour.LLAMACPP:
                return

    def stop(self, stop: Stop) -> Iterator[Output]:
        """Yield what SIGTERM makes the engine print."""
        match self._settings.flavour:
            case Flavour.VLLM:
                mode = "abort" if stop is Stop.ABORT else "drain"
                yield self._line("[launcher.py:254] [shutdown] API server: shutdown triggered")
                yield self._line(
                    f"[launcher.py:270] [shutdown] API server: stopping engine client mode={mode} timeout=0s"
                )
            case Flavour.SGLANG:
                yield self._line("SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
            case Flavour.LLAMACPP:
                return

    def stopped(self) -> Iterator[Output]:
        """Yield the last lines before a clean exit."""
        for line in ("Shutting down", "Waiting for application shutdown.", "Application shutdown complete."):
            match self._settings.flavour:
                case Flavour.VLLM:
                    yield Output(f"INFO:     {line}\n", stderr=True)
                case Flavour.SGLANG:
                    yield self._line(f"INFO:     {line}")
                case Flavour.LLAMACPP:
                    return

    def failed(self, lines: Iterable[str]) -> Iterator[Output]:
        """Yield a start that ends in a traceback of the core process."""
        for output in self.start(self._settings.port):
            yield output
            if "Starting to load model" in output.text:
                break
        for line in lines:
            yield self._line(f"[core.py:1136] {line}", process="EngineCore", level="ERROR")
        yield Output(
            "Traceback (most recent call last):\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            stderr=True,
        )

    def core_died(self) -> Iterator[Output]:
        """Yield what vLLM's API server prints when its core is gone."""
        for line in (
            "[async_llm.py:906] AsyncLLM output_handler failed.",
            "[async_llm.py:906] Traceback (most recent call last):",
            f"[async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: {CORE_DIED}",
        ):
            yield self._line(line, level="ERROR")
