#!/bin/busybox sh
# First program of the Linux guest. With a disk: mounts it, checks what the host wrote, writes the
# same upside down; then a shell if the command line asks for one (hsave=shell), else power off.
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
export PATH=/bin HOME=/
echo "guest: init"
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko"
done
# Power-off through ACPI where there is one; else the reset that -no-reboot turns into an exit.
leave() {
    sync
    echo "guest: done"
    if [ -d /sys/firmware/acpi ]; then poweroff -f; else reboot -f; fi
}
disk() {
    mount -t ext4 /dev/vda /mnt || return 1
    echo "guest: read $(sha256sum </mnt/pattern | cut -d' ' -f1)"
    tac </mnt/pattern >/mnt/answer && sync || return 1
    echo 3 >/proc/sys/vm/drop_caches
    echo "guest: wrote $(sha256sum </mnt/answer | cut -d' ' -f1)"
    umount /mnt
}
case " $(cat /proc/cmdline) " in
*" hsave=shell "*)
    mount -t ext4 /dev/vda /mnt
    echo
    echo "This is a Linux guest on hsave. Its disk is on /mnt. 'exit' powers it off."
    setsid cttyhack sh -l
    ;;
*" hsave=demo "*)
    for command in "uname -a" "grep -m1 'model name' /proc/cpuinfo" "grep -c ^processor /proc/cpuinfo" \
        "dmesg | grep -i hypervisor" "free -m"; do
        echo "guest# $command"
        sh -c "$command"
    done
    disk || echo "guest: disk failed"
    ;;
*)
    echo "guest: cpus $(grep -c ^processor /proc/cpuinfo)"
    echo "guest: $(dmesg | sed -n 's/.*\(Hypervisor detected.*\)/\1/p')"
    echo "guest: clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    if [ -b /dev/vda ]; then disk || echo "guest: disk failed"; fi
    ;;
esac
leave
