#!/usr/bin/env bash
# mypy over all packages. The top-level folders are the subpackages of `gymrl`, so it is shown a tree in which they
# are: links in build/typing.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p build/typing/gymrl
packages=()
for name in sandboxes envs agents rl leaderboards cli; do
    ln -sfn "../../../$name" "build/typing/gymrl/$name"
    packages+=(-p "gymrl.$name")
done
cd build/typing
MYPYPATH=$PWD exec ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
    --namespace-packages --explicit-package-bases "${packages[@]}" "$@"
