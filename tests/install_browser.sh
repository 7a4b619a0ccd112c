#!/bin/sh
# The browser that tests/test_compare_browser.py drives: Debian's chromium. Never fails: without it those tests skip.
command -v chromium >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing chromium for the tests of the HTML report ..."
  { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1
fi
command -v chromium >/dev/null 2>&1 ||
  echo "No chromium: the browser tests of the HTML report will be skipped (Debian: apt-get install chromium)."
exit 0
