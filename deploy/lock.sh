#!/usr/bin/env bash
# Writes requirements/<role>.txt: hash-pinned, without any index address, all from one resolution.
set -eu -o pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
common=(--quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate)

# hatchling builds the project itself without a second, isolated environment.
echo "resolving all extras"
$uv pip compile "${common[@]}" --all-extras --output-file requirements/all.txt pyproject.toml requirements/build.in
for role in api agents gpu sinks client; do
  echo "resolving ${role}"
  # Constrained by the file of everything, so that a role runs with the versions that the tests ran with.
  grep -E '^[a-zA-Z0-9._-]+==' requirements/all.txt | sed 's/ .*//' > requirements/.constraints
  $uv pip compile "${common[@]}" --extra "${role}" --constraints requirements/.constraints \
    --output-file "requirements/${role}.txt" pyproject.toml requirements/build.in
done
echo "resolving operator"
$uv pip compile "${common[@]}" --extra sinks --constraints requirements/.constraints \
  --output-file requirements/operator.txt pyproject.toml requirements/build.in requirements/operator.in
rm requirements/.constraints

# The clients of peers' protocols, in an environment of their own: other versions than ours, and not all that they drag in.
echo "resolving the clients of other protocols"
left_out=(imageio imageio-ffmpeg jsonargparse lazyregistry omegaconf rich markdown-it-py mdurl pygments tqdm psutil pydantic
  pydantic-core typeshed-client docstring-parser annotated-types typing-inspection pyyaml)
$uv pip compile "${common[@]}" $(printf -- '--no-emit-package %s ' "${left_out[@]}") \
  --output-file requirements/clients.txt requirements/clients.in
