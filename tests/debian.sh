#!/bin/sh
# Install the Debian packages that tests use; where that is not possible, the tests that need them skip aloud.
set -u
missing=
for package in chromium orthanc orthanc-python orthanc-dicomweb dicom3tools dcmtk nginx-light postgresql; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed:$missing (needs root on a Debian system): tests that need them will be skipped" >&2
    exit 0
fi
# Orthanc, nginx and PostgreSQL must not start as services of this machine, now or at its next boot: tests start their own
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing fonts-dejavu-core >/dev/null ||
    echo "could not install$missing: tests that need them will be skipped" >&2
for service in orthanc nginx postgresql; do
    case $missing in
    *" $service"*) systemctl disable --quiet $service 2>/dev/null ;;
    esac
done
exit 0
