#!/bin/busybox sh
# First program of the emulated AMD host: loads the modules, runs /script and reports.
# Serial ports: 0 the kernel's console, 1 the script's input and output, 2 the report for xtask.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /var/tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t devpts devpts /dev/pts
export PATH=/bin:/usr/bin HOME=/ TERM="${TERM:-vt100}"
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
# How many times longer than on an idle machine the start took: limits of what follows are stretched as much. Where virtual time
# counts instructions it is 1 on any machine.
read -r up rest </proc/uptime
export SLOW=$((${up%.*} / 4 + 1))
echo "hsave: modules" >/dev/kmsg
status=0
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || { echo "insmod $module failed"; status=125; }
done
[ -c /dev/kvm ] && chmod 0666 /dev/kvm
# All that follows keeps off the first processor (docs/decisions/0018).
[ ! -e /spare ] || taskset -p fffffffe $$ >/dev/null
[ -x /payload/heartbeat ] && /payload/heartbeat 2>/dev/console &
if [ $status = 0 ]; then
    if [ -e /interactive ]; then
        # A controlling terminal, so that ^C reaches what runs.
        setsid sh -c 'exec sh /script </dev/ttyS1 >/dev/ttyS1 2>&1'
    else
        sh /script </dev/null
    fi
    status=$?
fi
# A module that cannot be unloaded has lost something.
for module in kvm_amd kvm; do
    if grep -q "^$module " /proc/modules && ! rmmod $module; then
        echo "rmmod $module failed"
        [ $status = 0 ] && status=124
    fi
done
{
    dmesg | sed -n '/hsave: modules/,$p'
    echo "hsave: exit $status"
} >/dev/ttyS2
sync
poweroff -f
