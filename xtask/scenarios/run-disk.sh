# What `./x run --disk` starts, from a disk that has a boot sector: by SeaBIOS. Its program does what PCs of long ago do, and writes to the
# disk (tests/src/bin/old.rs). The same on stock's modules.
#: payloads old
#: compare
#: kernels 6.12
#: slow all
#: timeout 600
#: seconds 40
/payload/old /tmp/disk || exit 1
timeout $((200 * SLOW)) boot-disk /tmp/disk >/tmp/console 2>&1
status=$?
grep '^boot-disk\|^old' /tmp/console
# What the switches of tasks have left in their descriptors and states.
sed -n '/^old: EBP/,/^old: done/p' /tmp/console | sha256sum
[ $status = 0 ] || { cat /tmp/console; exit 2; }
grep -q '^old: done' /tmp/console || { cat /tmp/console; exit 3; }
# The disk was written, and what the guest wrote is what it read with the bytes of each word exchanged.
dd if=/tmp/disk bs=512 skip=41 count=1 2>/dev/null | tr -d '\0'
