#!/usr/bin/env bash
# What the tests need beside Python, from Debian's packages: a headless Chromium with its driver, Node with npm,
# Prometheus with promtool, and nginx.
# Installs only what is missing: builder/test_tools.sh
set -euo pipefail
packages=()
[ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ] || packages+=(chromium chromium-driver)
command -v node >/dev/null && command -v npm >/dev/null || packages+=(nodejs npm)
command -v promtool >/dev/null && command -v prometheus >/dev/null || packages+=(prometheus)
[ -x /usr/sbin/nginx ] || packages+=(nginx)
if [ ${#packages[@]} -eq 0 ]; then exit 0; fi

root=()
if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
if ! command -v apt-get >/dev/null || { [ ${#root[@]} -gt 0 ] && ! command -v sudo >/dev/null; }; then
    echo "test tools: install ${packages[*]} (/usr/bin/chromium, /usr/bin/chromedriver, /usr/sbin/nginx, node, npm and promtool on PATH) first" >&2
    exit 1
fi
echo "test tools: installing ${packages[*]}" >&2
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
