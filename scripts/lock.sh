#!/bin/sh
# Writes requirements.lock from pyproject.toml: every package of `local`, `privacy`, `evaluate` and `dev`, pinned,
# for all supported Python versions; and docker/requirements.lock, the part of it that the images have.
# Needs uv (pip install uv).
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --universal --quiet --no-header --no-annotate --no-emit-index-url \
        --python-version 3.10 --extra local --extra privacy "$@" pyproject.toml
}
compile --extra evaluate --extra dev --upgrade -o requirements.lock
compile --constraint requirements.lock --upgrade -o docker/requirements.lock
# The lock is for Linux on x86-64 only, so what every line repeats says nothing.
sed -i "s/ and platform_machine == 'x86_64' and sys_platform == 'linux'//
s/python_full_version < '3.13' and //; s/ and python_full_version < '3.13'//
s/ ; python_full_version < '3.13'\$//" requirements.lock docker/requirements.lock
