# The emulated host goes over to the Debian on its disk, whose changes are forgotten, and does there what an operator does. The script of
# that has a process namespace of its own: so it is not taken for a chroot, in which packages do less.
for module in $modules; do
    insmod /modules/$module.ko || exit 1
done
for second in $(seq $((30 * SLOW))); do
    [ ! -b /dev/sda ] || break
    sleep 1
done
root=/debian
mkdir -p $root && mount -t ext4 /dev/sda $root || exit 2
mount -t proc proc $root/proc && mount -t sysfs sysfs $root/sys && mount -t devtmpfs dev $root/dev || exit 3
mount -t devpts devpts $root/dev/pts && mount -t tmpfs run $root/run && mount -t tmpfs tmp $root/tmp || exit 4
mkdir -p $root/dev/shm && mount -t tmpfs shm $root/dev/shm
mount -t debugfs debugfs $root/sys/kernel/debug && mount -t tracefs tracefs $root/sys/kernel/tracing || exit 5
mount -t cgroup2 cgroup $root/sys/fs/cgroup
mkdir -p $root/hsave && cp /operator.sh $root/hsave/ || exit 6
[ ! -e /packages ] || cp /packages/* $root/hsave/ || exit 6
[ ! -e /kvm_stat ] || cp /kvm_stat $root/hsave/

# A guest that goes on until it is ended, with exits of several kinds.
mkdir -p /tmp/extra
cat >/tmp/extra/works <<'WORKS'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
export PATH=/bin
echo "guest: works"
while :; do
    echo "guest: still works"
    sleep 0.05
done
WORKS
chmod +x /tmp/extra/works
(cd /tmp/extra && echo works | cpio -o -H newc 2>/dev/null) >/tmp/extra.cpio
# An archive begins at a multiple of four.
{ dd if=/guest/initrd bs=512 conv=sync 2>/dev/null; cat /tmp/extra.cpio; } >$root/hsave/initrd
cp /guest/vmlinuz $root/hsave/
cp $root/hsave/initrd $root/hsave/vmlinuz $root/var/lib/libvirt/images/ || exit 7
chroot $root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SLOW=$SLOW LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    unshare --pid --fork --mount-proc sh /hsave/operator.sh
