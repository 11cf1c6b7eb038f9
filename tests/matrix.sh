#!/bin/sh
# The tests of core and tf on the oldest and the newest versions we support, each with its tf-keras. A Python that is
# not installed is left out, and said so at the end. `matrix.sh smoke`: a part of them on the oldest, in minutes.
set -u
cd "$(dirname "$0")/.."

# python  tensorflow and tf-keras  keras
rows="
3.10 2.16.* 3.5.*
3.12 2.18.* 3.8.*
3.13 2.21.* 3.15.*
"
tests="tests/core tests/tf tests/test_cli.py"

if [ "${1:-}" = smoke ]; then
    rows="${PYTHON_VERSION:-3.11} 2.16.* 3.5.*"
    tests="tests/core tests/tf/test_watch.py tests/tf/test_clip.py tests/tf/test_legacy.py"
fi

told=""
failed=0
while read -r python tensorflow keras; do
    [ -n "$python" ] || continue
    row="Python $python, TensorFlow $tensorflow, Keras $keras"
    if ! "python$python" -c "" 2>/dev/null; then
        told="$told$row: left out, python$python is not installed\n"
        continue
    fi
    venv=".venv-$python-$(echo "$tensorflow" | tr -d '.*')"
    "python$python" -m venv "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            "tensorflow==$tensorflow" "keras==$keras" "tf-keras==$tensorflow" \
            -e . click rich matplotlib pytest pytest-timeout pytest-xdist scipy &&
        "$venv/bin/python" -m pytest -q -n 2 --dist loadfile -m "not e2e" $tests </dev/null
    code=$?
    [ "$code" = 0 ] || failed=1
    told="$told$row: $([ "$code" = 0 ] && echo passed || echo "failed ($code)")\n"
done <<ROWS
$rows
ROWS

printf '\n%b' "$told"
exit "$failed"
