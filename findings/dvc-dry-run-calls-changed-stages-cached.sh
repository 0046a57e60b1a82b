#!/usr/bin/env bash
# DVC 3.67.1: `dvc repro --dry STAGE` says "is cached - skipping run" of a stage whose dependency has content that DVC
# has never seen. A dry run looks the run cache up by the hashes of the last run (dvc.lock), not of the files as they
# are now; without --dry the same command runs the stage.
#
# Seen, after the dependency was given new content:
#   dvc status           modified: in.txt
#   dvc repro --dry      Stage 'copy' is cached - skipping run, checking out outputs
#   dvc repro            Running stage 'copy':
# So the line of a dry run does not tell which stages would do work. What to do: hash first, then ask (in Python,
# `stage.save_deps()` on a stage without output hashes, then `repo.stage_cache.restore(stage, dry=True)`).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export DVC_NO_ANALYTICS=1 HOME="$place" GIT_CONFIG_NOSYSTEM=1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "dvc==3.67.1" "pathspec<1"
mkdir "$place/project"
cd "$place/project"
export PATH="$place/venv/bin:$PATH"
git init --quiet
dvc init --quiet
printf 'stages:\n  copy:\n    cmd: cp in.txt out.txt\n    deps: [in.txt]\n    outs: [out.txt]\n' > dvc.yaml
echo one > in.txt
dvc repro --quiet
echo "another content" > in.txt
status="$(dvc status)"
dry="$(dvc repro --dry copy)"
real="$(dvc repro copy)"
printf 'dvc status\n%s\n\ndvc repro --dry\n%s\n\ndvc repro\n%s\n\n' "$status" "$dry" "$real"
grep -Eq 'modified: +in.txt' <<< "$status"
grep -q "Stage 'copy' is cached - skipping run" <<< "$dry"
if grep -q "is cached" <<< "$real"; then exit 1; fi
grep -q "Running stage 'copy'" <<< "$real"
[ "$(cat out.txt)" = "another content" ]
echo "as described"
