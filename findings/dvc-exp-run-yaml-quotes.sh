#!/usr/bin/env bash
# DVC 3.67.1: `dvc exp run -S train.lr=0.2` changes one number, but writes the whole params file anew as YAML 1.2, in
# which "no" and "1:30" are text without quotes. A stage that reads the file with PyYAML (YAML 1.1, the usual way in
# Python) then finds the boolean False and the number 90 where text stood, in settings that nobody touched.
#
# Seen: names: ["no", "yes"] and pause: "1:30" become `- no`, `- yes`, `pause: 1:30`; PyYAML 6.0.3 reads
#   before  {'names': ['no', 'yes'], 'pause': '1:30', 'train': {'lr': 0.1}}
#   after   {'names': [False, True], 'pause': 90, 'train': {'lr': 0.2}}
# What to do: read such files as YAML 1.2 (ruamel.yaml), as DVC itself does.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export DVC_NO_ANALYTICS=1 HOME="$place" GIT_CONFIG_NOSYSTEM=1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "dvc==3.67.1" "pyyaml==6.0.3" "pathspec<1"
mkdir "$place/project"
cd "$place/project"
git init --quiet
git config user.name someone
git config user.email someone@example.org
export PATH="$place/venv/bin:$PATH"
dvc init --quiet
printf 'names: ["no", "yes"]\npause: "1:30"\ntrain:\n  lr: 0.1\n' > params.yaml
printf 'stages:\n  read:\n    cmd: python read.py\n    params: [names, pause, train]\n    outs: [seen.txt]\n' > dvc.yaml
printf 'import yaml\nopen("seen.txt", "w").write(str(yaml.safe_load(open("params.yaml"))))\n' > read.py
git add -A
git commit --quiet -m start
dvc repro --quiet
before="$(cat seen.txt)"
dvc exp run --quiet -S train.lr=0.2
after="$(cat seen.txt)"
printf 'before  %s\nafter   %s\n' "$before" "$after"
[ "$before" = "{'names': ['no', 'yes'], 'pause': '1:30', 'train': {'lr': 0.1}}" ]
[ "$after" = "{'names': [False, True], 'pause': 90, 'train': {'lr': 0.2}}" ]
echo "as described"
