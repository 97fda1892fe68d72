#!/usr/bin/env bash
# Install Chromium from the distribution's packages, for the tests of pages: scripts/install_browser.sh
# Does nothing if a browser that these tests use is installed. Playwright's own browsers are not downloaded.
set -euo pipefail

fail() {
    echo "install_browser.sh: $1" >&2
    exit 1
}

for name in chromium chromium-browser google-chrome; do
    ! command -v "$name" >/dev/null || exit 0
done

hand="install chromium or google-chrome by hand, then rerun this script"
command -v apt-get >/dev/null || fail "apt-get is missing: $hand"
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root="sudo -n"
    $as_root true 2>/dev/null || fail "installing needs root: sudo apt-get install chromium"
fi

echo "Installing chromium with apt-get (about a minute, once)"
apt_options="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"
# shellcheck disable=SC2086
{
    $as_root apt-get $apt_options -qq update &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get $apt_options -qq install -y --no-install-recommends chromium
} >/dev/null || fail "apt-get could not install chromium: $hand"
command -v chromium >/dev/null || fail "chromium is installed but not on the PATH: $hand"
