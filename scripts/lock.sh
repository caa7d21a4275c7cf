#!/bin/sh
# Writes requirements.lock from pyproject.toml: every package of `local`, `privacy`, `evaluate` and `dev`, pinned,
# for all supported Python versions; docker/requirements.lock, the part of it that the images have; and the lock of
# other people's clients that tests run. These come without the package perf-analyzer, which has no program in it.
# Needs uv (pip install uv).
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --universal --quiet --no-header --no-annotate --no-emit-index-url \
        --python-version 3.10 --upgrade "$@"
}
compile_project() {
    compile --extra local --extra privacy "$@" pyproject.toml
}
clients=tests/other_clients
compile_project --extra evaluate --extra dev -o requirements.lock
compile_project --constraint requirements.lock -o docker/requirements.lock
compile $clients/requirements.in --no-emit-package perf-analyzer -o $clients/requirements.lock
# The lock is for Linux on x86-64 only, so what every line repeats says nothing.
sed -i "s/ and platform_machine == 'x86_64' and sys_platform == 'linux'//
s/python_full_version < '3.13' and //; s/ and python_full_version < '3.13'//
s/ ; python_full_version < '3.13'\$//" requirements.lock docker/requirements.lock $clients/requirements.lock
