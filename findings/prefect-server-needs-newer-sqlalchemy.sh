#!/usr/bin/env bash
# Prefect 3.8.0 with SQLAlchemy 2.0.15: Prefect declares sqlalchemy>=2.0, and its server imports a module that SQLAlchemy has
# from 2.0.16 on. An installer that takes the oldest versions allowed, or an environment that holds an older one, gets a
# client that works and a server that ends at its first import.
#
# Seen:
#   2.0.15  import prefect: works; the server: No module named 'sqlalchemy.dialects.postgresql.operators'
#   2.0.16  both work
# What to do: ask for sqlalchemy>=2.0.16 beside Prefect oneself.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export HOME="$place" PREFECT_HOME="$place/prefect" DO_NOT_TRACK=1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "prefect==3.8.0" "sqlalchemy==2.0.15" "fastapi==0.139.0"
look() {
    "$place/venv/bin/python" -W ignore - "$1" <<'PYTHON'
import sys
from importlib.metadata import requires

import prefect
import sqlalchemy

asked = [line for line in requires("prefect") if line.startswith("sqlalchemy") and "extra" not in line]
print("prefect", prefect.__version__, "asks for", *asked, "and has", sqlalchemy.__version__)
try:
    import prefect.server.api.server
except ModuleNotFoundError as error:
    print("the server:", error)
    assert sys.argv[1] == "fails" and error.name == "sqlalchemy.dialects.postgresql.operators", "this has changed"
else:
    print("the server can be imported")
    assert sys.argv[1] == "works", "this has changed"
PYTHON
}
look fails
"$place/venv/bin/python" -m pip install --quiet "sqlalchemy==2.0.16"
look works
echo "as described"
