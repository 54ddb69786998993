#!/bin/busybox sh
# First program of the Linux guest. With a disk: mounts it, checks what the host wrote, writes the
# same upside down; then a shell if the command line asks for one (hsave=shell), else power off. As a
# client's guest (hsave=client) it restarts once, and uses the network when it is back. As one that moves (hsave=moves) it
# works until the host has had enough, and notices what does not stay as it was.
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
# From the host and back to it: QEMU's user network is 10.0.2.0/24, with the host at 2.
network() {
    ifconfig eth0 10.0.2.15 up || return 1
    wget -q -O /received http://10.0.2.2:8000/pattern || return 1
    echo "guest: received $(sha256sum </received | cut -d' ' -f1)"
    wget -q -O /dev/null --post-file /mnt/answer http://10.0.2.2:8000/cgi-bin/put || return 1
}
client() {
    mount -t ext4 /dev/vda /mnt || return 1
    if [ ! -e /mnt/restarted ]; then
        touch /mnt/restarted
        umount /mnt
        disk || return 1
        echo "guest: restarts"
        reboot -f
        sleep 60
    fi
    echo "guest: reads again $(sha256sum </mnt/answer | cut -d' ' -f1)"
    network
    status=$?
    umount /mnt
    return $status
}
# What the host has plugged in is used; says when there is more than before, or less.
plugged() {
    for it in /sys/devices/system/cpu/cpu*/online; do
        read -r online <$it
        [ "$online" = 1 ] || echo 1 >$it
    done 2>/dev/null
    cpus=$(grep -c ^processor /proc/cpuinfo)
    has="$cpus cpus, $(ls -d /sys/devices/system/memory/memory* 2>/dev/null | wc -l) blocks of memory"
    [ "$has" = "$had" ] || { changes=$((changes + 1)); echo "guest: has $has, change $changes"; }
    had=$has
}
# How long its clock was not seen to move at most, by who looks all the time; in milliseconds, into /gap.
watch() {
    awk 'BEGIN { while (1) {
        while ((getline line < "/proc/timer_list") > 0) if (line ~ /^now at/) break
        close("/proc/timer_list"); split(line, word, " "); now = word[3]
        if (was && now < was) { print "guest: the clock went back"; system("touch /wrong") }
        if (was && now - was > most) { most = now - was; printf "%d\n", most / 1000000 >"/gap"; close("/gap") }
        was = now
    } }'
}
moves() {
    mount -t ext4 /dev/vda /mnt && ifconfig eth0 10.0.2.15 up || return 1
    head -c 8388608 /dev/urandom >/noise
    noise=$(md5sum </noise) rounds=0
    # On a loaded machine the start alone may take longer than a round may.
    read -r passed rest </proc/uptime
    passed=${passed%.*}
    echo 4 >/proc/sys/vm/drop_caches # from here on without a word
    case " $(cat /proc/cmdline) " in *" hsave-watch "*) watch & ;; esac
    echo "guest: works"
    until wget -T 20 -q -O /dev/null http://10.0.2.2:8000/enough 2>/dev/null; do
        rounds=$((rounds + 1)) before=$passed
        echo $rounds >>/mnt/rounds && sync
        echo 1 >/proc/sys/vm/drop_caches
        sleep 0.1
        plugged
        read -r passed rest </proc/uptime
        passed=${passed%.*}
        [ $((passed >= before && passed <= before + 60)) = 1 ] || { echo "guest: uptime $before, then $passed"; return 1; }
        # On each processor in its turn; one that has just gone is none.
        sum=$(taskset $(printf %x $((1 << rounds % cpus))) md5sum </noise 2>/dev/null) || sum=$(md5sum </noise)
        [ "$sum" = "$noise" ] || { echo "guest: memory changed"; return 1; }
    done
    [ $(wc -l </mnt/rounds) = $rounds ] || { echo "guest: the disk has other than $rounds rounds"; return 1; }
    umount /mnt
    [ ! -e /gap ] || echo "guest: longest gap $(cat /gap) ms"
    [ ! -e /wrong ] && [ $rounds -ge 3 ] && echo "guest: all is as it was"
}
report() {
    echo "guest: cpus $(grep -c ^processor /proc/cpuinfo)"
    echo "guest: $(dmesg | sed -n 's/.*\(Hypervisor detected.*\)/\1/p')"
    echo "guest: clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
    # As a guest of Hyper-V's: what it uses of that, and whether its timers have expired.
    dmesg | sed -n 's/.*Hyper-V: Using \(.*\)/guest: uses \1/p'
    used() { sed -n "s/^ *$1://p" /proc/interrupts | grep -q '[1-9]' && echo "guest: interrupts $1"; }
    used HVS
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
*" hsave=client "*)
    report
    client || { echo "guest: failed"; poweroff -f; }
    ;;
*" hsave=moves "*)
    report
    moves || { echo "guest: failed"; poweroff -f; }
    ;;
*)
    report
    if [ -b /dev/vda ]; then disk || echo "guest: disk failed"; fi
    ;;
esac
leave
