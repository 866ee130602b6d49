#!/bin/sh
# Install llmcompress from this clone into a virtual environment of its own.
#
#   scripts/install.sh [-e] [VENV [EXTRAS]]
#
#   -e      editable: the environment runs the clone as it stands
#   VENV    the environment to make (default: .venv)
#   EXTRAS  extras of pyproject.toml, separated by commas (default: genai)
#
# PYTHON names the interpreter (default: python3). On Linux for x86-64, PyPI's torch brings 4 GB of CUDA libraries that no
# Intel device uses, so torch's own index of CPU builds is taken where it answers.
set -eu

CPU_INDEX=https://download.pytorch.org/whl/cpu

editable=
if [ "${1:-}" = -e ]; then
    editable=--editable
    shift
fi
venv=${1:-.venv}
extras=${2:-genai}
clone=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "install.sh: $python is no Python 3.11 or newer with venv; on Debian: apt install python3-venv; or set PYTHON" >&2
    exit 1
fi
"$python" -m venv "$venv"

from=
if [ "$(uname -sm)" = "Linux x86_64" ]; then
    if "$venv/bin/python" -c "import urllib.request; urllib.request.urlopen('$CPU_INDEX/torch/', timeout=10)" 2>/dev/null; then
        echo "torch: the CPU build, from $CPU_INDEX"
        from="--extra-index-url $CPU_INDEX"
    else
        echo "torch: PyPI's build, because $CPU_INDEX does not answer; its CUDA libraries take more than 4 GB"
    fi
fi

# shellcheck disable=SC2086  # both are options or nothing
"$venv/bin/python" -m pip install --constraint "$clone/llmcompress/cli/tested_versions.txt" $from $editable "$clone[$extras]"

echo "Installed in $venv: $(du -sh "$venv" | cut -f1)"
for library in nvidia triton; do
    for found in "$venv"/lib/python3*/site-packages/$library; do
        if [ -d "$found" ]; then
            echo "  $(du -sh "$found" | cut -f1) of it is $library, which came with PyPI's torch and is not used"
        fi
    done
done
echo "Run: $venv/bin/llmcompress doctor"
