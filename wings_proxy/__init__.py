"""The sidecar that makes an LLM engine a good citizen of Kubernetes.

- `config`: environment over YAML over defaults becomes one frozen `Config`.
- `engines`: one file an engine: its command, its paths, what its log and its metrics mean.
- `handover`: the argv becomes a script on the shared volume; the engine container runs it and reports there.
- `lifecycle`: the state machine, one table without I/O or clock. `supervisor` is the one task that owns it: its
  children (publisher, volume watch, prober, log tail) send it facts, and everyone else reads the snapshot. The gate
  holds the engine container while requests are in flight.
- `server`: a request's raw path decides: our own endpoints (`status`, `docs`, the scrape), or the engine's.
- `proxy`: the byte path. What the engine sends goes to the client's transport in the callback that received it; what a
  request was is counted and logged at its end.
- `telemetry`: what is scraped from the engine, read from its log, told to Prometheus.
- `serve` puts all of it together and takes it apart in order; `local` does it for one machine, engine included.
"""

__version__ = "0.1.0.dev0"
