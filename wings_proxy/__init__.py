"""The sidecar that makes an LLM engine a good citizen of Kubernetes.

- `config`, `config_load`: environment over YAML over defaults becomes one frozen `Config`.
- `engines`: one file an engine; a `Config` becomes the engine's argv.
- `launch`, `volume`: the argv becomes a script on the shared volume; the engine container runs it and reports there.
- `lifecycle`: the state machine, one table without I/O or clock. `supervisor` is the one task that owns it: its
  children (publisher, volume watch, prober, log tail) send it facts, and everyone else reads the snapshot.
- `app`: a request's raw path decides: our own endpoints (`status`, `scrape`, `docs`), or the engine's.
- `gate` admits a request by the snapshot and holds the engine container while requests are in flight.
- `forward`: the byte path. What the engine sends goes to the client's transport in the callback that received it.
- `serve` puts all of it together and takes it apart in order; `up` does the same for one machine, engine included.
"""

__version__ = "0.1.0.dev0"
