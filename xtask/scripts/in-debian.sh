#!/bin/sh
# in-debian COMMAND...: runs a command in the Debian on /dev/sda (xtask/src/debian.rs), which shares this host's devices, processes, /tmp,
# /guest, /payload and /modules.
root=/debian disk=${DISK:-/dev/sda}
# On another machine that is somebody's disk: the file system's name, of up to 16 bytes, says whose it is.
if [ "$(dd if=$disk bs=1 skip=$((1024 + 120)) count=16 2>/dev/null | tr -d '\000')" != hsave-debian ]; then
    echo "in-debian: $disk is not the Debian that is made for this" >&2
    exit 2
fi
if [ ! -e $root/etc ]; then
    mkdir -p $root
    mount -t ext4 $disk $root || exit 1
    mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
    for dir in dev proc sys tmp guest payload modules; do
        [ ! -d /$dir ] || { mkdir -p $root/$dir && mount -o rbind /$dir $root/$dir; } || exit 1
    done
    mount -t tmpfs tmpfs $root/run && mkdir -p $root/run/lock $root/run/dbus || exit 1
fi
# Its root is that of a name space of mounts, not of a chroot, in which nobody may make name spaces of users.
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C SLOW="${SLOW:-1}" \
    /bin/unshare -m /bin/sh -c "cd $root && mount -o move . / && exec chroot . \"\$@\"" sh "$@"
