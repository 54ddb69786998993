# A Linux guest whose memory has been swapped out to a slow disk: how long it takes to read its data, with something else to do
# besides, without asynchronous page faults and with them. Printed; with them it has to take less time.
#: kernels 6.12
#: slow all
#: modules null_blk
#: smp 1
#: virtual-time
#: timeout 600
#: seconds 150
for module in configfs null_blk; do
    [ ! -e /modules/$module.ko ] || grep -q "^$module " /proc/modules && continue
    case $module in
    # Each request takes 3 ms.
    null_blk) set -- irqmode=2 completion_nsec=3000000 memory_backed=1 gb=1 submit_queues=1 nr_devices=1 ;;
    *) set -- ;;
    esac
    insmod /modules/$module.ko "$@" || exit 1
done
mkswap /dev/nullb0 >/dev/null && swapon /dev/nullb0 || exit 1
# Page by page.
echo 0 >/proc/sys/vm/page-cluster
mkdir -p /cgroup && mount -t cgroup2 none /cgroup && echo +memory >/cgroup/cgroup.subtree_control || exit 1
mkdir /cgroup/guest /tmp/extra
cat >/tmp/extra/pressure <<'EOF'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin
# Data that a program reads in user mode: only there is a Linux guest told of a page.
awk 'BEGIN { for (i = 0; i < 12000; i++) a[i] = sprintf("%0400d", i); system("echo guest: ready; sleep 20; touch /tmp/go")
    for (i = 0; i < 12000; i++) sum += length(a[i]); print sum }' &
until [ -e /tmp/go ]; do sleep 0.1; done
read -r before rest </proc/uptime
dd if=/dev/zero bs=64k count=3200 2>/dev/null | md5sum >/tmp/sum &
wait
read -r after rest </proc/uptime
echo "guest: took $(($(echo $after | tr -d .) - $(echo $before | tr -d .)))"
echo "guest: told $(sed -n 's/^ *HYP: *\([0-9]*\).*/\1/p' /proc/interrupts) times"
reboot -f
EOF
chmod +x /tmp/extra/pressure
(cd /tmp/extra && echo pressure | cpio -o -H newc 2>/dev/null) >/tmp/extra.cpio
# An archive begins at a multiple of four.
{ dd if=/guest/initrd bs=512 conv=sync 2>/dev/null; cat /tmp/extra.cpio; } >/tmp/initrd
# The guest with these features of the processor: centiseconds, and how often it was told of a page.
guest() {
    sh -c 'echo $$ >/cgroup/guest/cgroup.procs; exec qemu-system-x86_64 -accel kvm -cpu '$1' -M microvm -m 256 -nodefaults \
        -display none -no-reboot -serial stdio -kernel /guest/vmlinuz -initrd /tmp/initrd \
        -append "console=ttyS0 panic=-1 tsc=nowatchdog rdinit=/pressure quiet"' >/tmp/log 2>&1 &
    for second in $(seq $((120 * SLOW))); do
        grep -q "guest: ready" /tmp/log && break
        sleep 1
    done
    # As much of it as there is; what has just been used goes when it is asked for again.
    for round in $(seq 10); do
        echo 64M >/cgroup/guest/memory.reclaim 2>/dev/null
        [ $(cat /cgroup/guest/memory.swap.current) -lt 100000000 ] || break
        sleep 1
    done
    echo "$1: $(($(cat /cgroup/guest/memory.swap.current) >> 20)) MiB are swapped out" >&2
    wait
    grep -q "guest: took" /tmp/log || { cat /tmp/log; exit 1; }
    took=$(sed -n 's/^guest: took \([0-9]*\).*/\1/p' /tmp/log) told=$(sed -n 's/^guest: told \([0-9]*\).*/\1/p' /tmp/log)
    echo "$1: ${took}0 ms, told ${told:-0} times"
}
guest host,kvm-asyncpf=off,kvm-asyncpf-int=off
without=$took
[ ${told:-0} = 0 ] || exit 2
guest host
[ ${told:-0} -gt 300 ] || exit 3
[ $((took * 100)) -lt $((without * 85)) ]
