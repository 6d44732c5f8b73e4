#!/bin/sh
# Has a systemd of its own, in namespaces of its own, run mkvmm by the units in
# scripts/: systemd.sh MKVMM SCRIPTS DIRECTORY. Prints what it does; ends with "passed".
set -eu
mkvmm=$1 scripts=$2 dir=$3
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mkdir -m 700 /run/user
units=$dir/config/systemd/user
mkdir -p "$units"
export XDG_RUNTIME_DIR=/run/user XDG_CONFIG_HOME="$dir/config" HOME="$dir"
socket=$dir/sock
printf '[Unit]\nDescription=none\n' >"$units/basic.target"
# The units as they are, but for their paths, with less patience, and without what needs
# a /proc that was not mounted for this test.
for unit in mkvmm.service mkvmm.socket; do
    sed -e "s#/usr/local/bin/mkvmm#$mkvmm#; s#/etc/mkvmm.toml#$dir/mkvmm.toml#" \
        -e "s#/run/mkvmm.sock#$socket#; s#/var/lib/mkvmm/state#$dir/state#" \
        -e 's#^TimeoutStopSec=.*#TimeoutStopSec=3#' \
        -e "s#^PrivateTmp=.*#ReadWritePaths=$dir#" \
        -e '/^ProtectKernelTunables=/d; /^ProtectKernelLogs=/d' \
        "$scripts/$unit" >"$units/$unit"
done
echo 'pool = "64M@4G"' >"$dir/mkvmm.toml"
/lib/systemd/systemd --user --unit=basic.target --log-target=console >"$dir/systemd.log" 2>&1 &
tries=0
until systemctl --user is-system-running >"$dir/state.log" 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "no systemd: $(cat "$dir/state.log" "$dir/systemd.log")"
        exit 77
    fi
    sleep 0.1
done

fail() {
    echo "failed: $1"
    systemctl --user show --property=Result,ExecMainCode,ExecMainStatus mkvmm.service
    cat "$dir/systemd.log"
    exit 1
}
ask() {
    verb=$1
    shift
    "$mkvmm" "$verb" --socket "$socket" "$@"
}
main() { systemctl --user show --property=MainPID --value mkvmm.service; }
# The processes of guests and of their keeper.
left() { grep -slz '^mkvmm-' /proc/[0-9]*/cmdline || true; }
worker() { grep -slxz 'mkvmm-worke[r]: web' /proc/[0-9]*/cmdline | sed 's#/proc/\([0-9]*\)/.*#\1#'; }
# Fails unless the guest has the process that it had, under another main process.
expect_kept() {
    tries=0
    until [ "$(main)" != "$before" ] && [ "$(main)" != 0 ] && ask audit >"$dir/audit" 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -le 300 ] || fail "$1: no other manager"
        sleep 0.1
    done
    [ "$(worker)" = "$pid" ] || fail "$1: the guest has process $(worker) instead of $pid"
    before=$(main)
    echo "$1: kept"
}
expect_nothing() {
    tries=0
    while [ -n "$(left)" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 100 ] || fail "$1: left: $(left)"
        sleep 0.1
    done
    echo "$1: nothing is left"
}
start() {
    systemctl --user start mkvmm.socket mkvmm.service || fail "start"
    # This guest takes no notice of its power button.
    ask create web --memory 8M --kernel probe --cmdline spin >"$dir/said" || fail "create"
    ask start web >"$dir/said" || fail "start web"
    before=$(main) pid=$(worker)
    [ -n "$pid" ] || fail "the guest has no process"
}

start
systemctl --user restart mkvmm.service || fail "restart"
expect_kept "restart"
kill -9 "$before"
expect_kept "crash"
systemctl --user restart mkvmm.service || fail "restart"
expect_kept "restart again"
ask kill web --force >"$dir/said"
systemctl --user stop mkvmm.socket mkvmm.service || fail "stop"
expect_nothing "stop"
# With the drop-in, passt has the network that it needs.
mkdir "$units/mkvmm.service.d"
cp "$scripts/../contrib/mkvmm-network.conf" "$units/mkvmm.service.d/network.conf"
systemctl --user daemon-reload
start
if command -v passt >"$dir/said"; then
    ask create net --memory 8M --kernel probe --cmdline spin --net passt >"$dir/said" || fail "create net"
    ask start net >"$dir/said" || fail "start net"
    echo "network: there"
fi
# It is killed in the end, since its guests have more time than it has.
sed -i 's/^grace.*//; $a grace = 3600' "$dir/mkvmm.toml"
systemctl --user restart mkvmm.service || fail "restart"
expect_kept "restart with more patience"
systemctl --user stop mkvmm.socket mkvmm.service || true
expect_nothing "stop without patience"
echo passed
