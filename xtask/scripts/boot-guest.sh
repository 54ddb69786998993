#!/bin/sh
# boot-guest MACHINE MODE [QEMU ARGUMENTS]: boots the Linux guest on /dev/kvm in unmodified QEMU, in the
# emulated host (or, by `./x run --here`, on this machine). MACHINE is microvm, q35 or pc, or one of the
# last two with -split: the I/O APIC in QEMU. MODE is what guest-init does: check, demo or shell. Afterwards the guest's work on its disk is checked from here.
machine=$1 mode=$2
shift 2
work=${WORK:-/tmp} guest=${GUEST:-/guest} qemu=${QEMU:-qemu-system-x86_64}
disk=$work/disk

[ -c /dev/kvm ] || { echo "there is no /dev/kvm"; exit 1; }
dd if=/dev/zero of=$disk bs=1M count=16 2>/dev/null
mke2fs -F $disk >/dev/null 2>&1 || { echo "cannot make a file system for the guest"; exit 1; }
mkdir -p $work/mnt
mount -t ext4 -o loop $disk $work/mnt && cp $guest/pattern $work/mnt/ && umount $work/mnt || exit 1

# Firmware and boards that have a PCI bus take a PCI disk.
case $machine in
microvm) set -- -M microvm -device virtio-blk-device,drive=disk "$@" ;;
*-split) set -- -M ${machine%-split},kernel-irqchip=split -device virtio-blk-pci,drive=disk "$@" ;;
*) set -- -M $machine -device virtio-blk-pci,drive=disk "$@" ;;
esac
append="console=ttyS0 panic=-1 printk.time=0 hsave=$mode"
[ $mode = check ] || append="$append quiet"
boot() {
    $qemu -accel kvm -cpu host -m 512 -nodefaults -no-reboot -display none -chardev stdio,id=console,signal=off \
        -serial chardev:console -drive file=$disk,format=raw,if=none,id=disk \
        -kernel $guest/vmlinuz -initrd $guest/initrd -append "$append" "$@"
}
if [ $mode = shell ]; then
    boot "$@"
    exit
fi
{ boot "$@" 2>&1; echo $? >$work/status; } | tee $work/console
status=$(cat $work/status)
[ $status = 0 ] || { echo "QEMU exited with $status"; exit 1; }
grep -q "^guest: done" $work/console || { echo "the guest did not reach its end"; exit 1; }
mount -t ext4 -o loop $disk $work/mnt || exit 1
wrote=$(sha256sum <$work/mnt/answer)
umount $work/mnt
echo "host: the disk holds $wrote"
[ "$wrote" = "$(tac <$guest/pattern | sha256sum)" ] || { echo "the guest's disk is wrong"; exit 1; }
