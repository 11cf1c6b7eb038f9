#!/bin/sh
# A small part of the tests on the newest pre-release of Keras, beside the TensorFlow of .venv: says early what will
# break. Always ends with 0; the result is the last line that it prints.
set -u
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

result() {
    echo "Keras pre-release: $1"
    exit 0
}

timeout 60 "$python" -m pip download --quiet --disable-pip-version-check --pre --no-deps --dest "$folder" keras ||
    result "none could be fetched"
wheel=$(ls "$folder" | head -n 1)
case $wheel in
*[0-9]a[0-9]* | *[0-9]b[0-9]* | *[0-9]rc[0-9]* | *.dev[0-9]*) ;;
*) result "none, the newest is $wheel" ;;
esac
timeout 30 "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" \
    "$folder/$wheel" || result "$wheel cannot be installed"
PYTHONPATH="$folder/site" timeout 150 "$python" -m pytest -q tests/tf/test_compat.py tests/tf/test_methods.py </dev/null
code=$?
[ "$code" = 0 ] && result "$wheel passed"
[ "$code" = 124 ] && result "$wheel ran out of time"
result "$wheel FAILED ($code), see above"
