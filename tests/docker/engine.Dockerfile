# An engine's image for the tests: llama.cpp, and nothing of wings-infer but the program that takes its flags.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
ARG XLLAMACPP
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv /opt/llama \
    && /opt/llama/bin/pip install -q --no-cache-dir --no-deps --only-binary=:all: "${XLLAMACPP}" \
    && printf '#!/bin/sh\nexec /opt/llama/bin/python3 -I /opt/llama/llama_server.py "$@"\n' >/usr/local/bin/llama-server \
    && chmod 0755 /usr/local/bin/llama-server
COPY wings_proxy/local/llama_server.py /opt/llama/
