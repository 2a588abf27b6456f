"""The sidecar that makes an LLM engine a good citizen of Kubernetes."""

__version__ = "0.1.0.dev0"
