# What `./x run --disk` starts, from a disk with a partition for EFI: by OVMF, with a CD-ROM beside it, on either bus. Debian's GRUB
# starts Debian's kernel, which reads its disk and its network card. Not compared with stock: the emulator aborts with stock's modules.
#: secure-boot
#: load vfat nls_cp437 nls_ascii
#: kernels 6.12
#: slow all
#: timeout 900
#: seconds 200
cd /tmp
dd if=/dev/zero of=disk bs=1M count=64 2>/dev/null
# A partition table: type 0xef, from sector 2048, 129024 sectors.
printf '\0\0\0\0\357\0\0\0\0\010\0\0\0\370\1\0' | dd of=disk bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=disk bs=1 seek=510 conv=notrunc 2>/dev/null
losetup -o 1048576 /dev/loop6 disk && mkdosfs /dev/loop6 >/dev/null && mkdir -p mnt && mount -t vfat /dev/loop6 mnt || exit 1
mkdir -p mnt/EFI/BOOT mnt/EFI/debian
cp /secure/grub mnt/EFI/BOOT/BOOTX64.EFI && cp /guest/vmlinuz /guest/initrd mnt || exit 1
cat >mnt/EFI/debian/grub.cfg <<'CFG'
search --file --set=root /vmlinuz
linux /vmlinuz console=ttyS0 panic=-1 hsave=look
initrd /initrd
boot
CFG
umount mnt && losetup -d /dev/loop6
head -c 2097152 /guest/pattern >iso
for bus in sata virtio; do
    BUS=$bus SNAPSHOT=yes MEMORY=512 timeout $((400 * SLOW)) boot-disk disk iso >console 2>&1 || { tail -n 40 console; exit 2; }
    grep '^boot-disk' console
    grep "^guest: cpus" console
    grep -q '^guest: done' console || { tail -n 40 console; exit 3; }
done
