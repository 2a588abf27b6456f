#!/bin/sh
# base_image.sh IMAGE: make a stand-in for the Dockerfile's base image out of Debian packages, where no container
# registry is reached: the same Debian release and Python minor version, without bytecode, as the real one comes.
# As root, or with user namespaces. Needs mmdebstrap and podman; about half a minute.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2016 # mmdebstrap's shell expands the hook's $1: the new root
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --customize-hook='find "$1/usr" -name __pycache__ -type d -prune -exec rm -rf {} +' \
  trixie "$work/base.tar"
podman import --quiet --change 'CMD ["python3"]' "$work/base.tar" "$1"
