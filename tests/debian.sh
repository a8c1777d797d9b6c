#!/bin/sh
# Install the Debian packages that tests use; where that is not possible, the tests that need them skip aloud.
set -u
missing=
for package in chromium; do
    command -v "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed:$missing (needs root on a Debian system): browser tests will be skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing fonts-dejavu-core >/dev/null ||
    echo "could not install$missing: browser tests will be skipped" >&2
exit 0
