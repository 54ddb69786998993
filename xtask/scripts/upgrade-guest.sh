#!/bin/sh
# upgrade-guest [ACCEL]: a Linux guest with two vCPUs that works without end: with memory, timers and its console, where it counts, and now
# and then says how long its own clock was not seen to move at most. For those who change the engine under it. ACCEL is what
# follows QEMU's `-accel kvm`; from the environment: CPU (host).
work=$(mktemp -d)
mkdir $work/extra
cat >$work/extra/work <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin
# What is written is what is read.
awk 'BEGIN { for (i = 0; i < 20000; i++) print i, i * i }' >/tmp/data
sum=$(md5sum </tmp/data)
while :; do cp /tmp/data /tmp/copy; [ "$(md5sum </tmp/copy)" = "$sum" ] || echo "guest: WRONG sum"; done &
n=0
while sleep 0.5; do n=$((n + 1)); echo "guest: count $n"; done &
# Its clock, in nanoseconds. What was before the first word is the guest's own start.
awk 'BEGIN { while (1) {
    while ((getline line < "/proc/timer_list") > 0) if (line ~ /^now at/) break
    close("/proc/timer_list"); split(line, word, " "); now = word[3]
    if (was && now < was) print "guest: WRONG clock"
    if (was && now - was > most) most = now - was
    was = now
    if (++rounds % 200 == 0) { printf "guest: longest gap %d us\n", most / 1000; if (!told) most = 0; told = 1; fflush() }
} }'
END
chmod +x $work/extra/work
(cd $work/extra && echo work | cpio -o -H newc 2>/dev/null) >$work/extra.cpio
# An archive begins at a multiple of four.
{ dd if=/guest/initrd bs=512 conv=sync 2>/dev/null; cat $work/extra.cpio; } >$work/initrd
exec qemu-system-x86_64 -accel kvm$1 -cpu ${CPU:-host} -smp 2 -M microvm -m 128 -nodefaults -display none -no-reboot -serial stdio \
    -kernel /guest/vmlinuz -initrd $work/initrd -append "console=ttyS0 panic=-1 tsc=nowatchdog rdinit=/work quiet"
