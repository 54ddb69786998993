# A device of the host's, behind its IOMMU, for a guest alone (vfio-pci): a virtio disk, which the guest reads and writes by DMA and hears
# from by interrupts, while its memory is pinned. The device is unplugged and goes back to the host, which finds on it what the guest
# wrote; then the VM of another guest is killed that uses it. Debian's generic kernel has the driver for AMD's IOMMU.
#: kernels 6.12-generic
#: load virtio_pci virtio_blk vfio_iommu_type1 vfio-pci
#: qemu -M q35 -device amd-iommu,intremap=on -drive if=none,id=given,driver=raw,file.driver=null-co,file.size=32M,snapshot=on -device virtio-blk-pci,drive=given,addr=8,disable-legacy=on,iommu_platform=on
#: plain
#: compare
#: timeout 600
#: seconds 120
cd /tmp
device=0000:00:08.0 pci=/sys/bus/pci
fail() { echo "$*"; tail -n 30 console; dmesg | tail -n 20; exit 1; }
# The device is driven by $1 from now on.
driver() {
    [ ! -e $pci/devices/$device/driver ] || echo $device >$pci/devices/$device/driver/unbind
    echo $1 >$pci/devices/$device/driver_override
    echo $device >$pci/drivers_probe
    [ $(basename $(readlink $pci/devices/$device/driver)) = $1 ] || fail "$1 does not drive the device"
}
[ -e $pci/devices/$device/iommu_group ] || fail "the device is in no IOMMU group"
echo "interrupt remapping: $(dmesg | grep -c 'AMD-Vi: Interrupt remapping enabled')"
cat /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
mke2fs -F /dev/vda >/dev/null 2>&1 && mkdir -p mnt && mount -t ext4 /dev/vda mnt && cp /guest/pattern mnt && umount mnt || exit 1
start() {
    rm -f typed console monitor.in monitor.out
    mkfifo typed monitor.in monitor.out
    cat monitor.out >monitor &
    qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256 -nodefaults -display none -no-reboot \
        -chardev stdio,id=console,signal=off -serial chardev:console -chardev pipe,id=monitor,path=monitor -mon monitor \
        -kernel /guest/vmlinuz -initrd /guest/initrd -append 'console=ttyS0 panic=-1 quiet hsave=shell' \
        -device pcie-root-port,id=rootport0 -device vfio-pci,host=$device,bus=rootport0,id=passed <typed >console 2>&1 &
    qemu=$!
    exec 3>typed 4>monitor.in
    await "powers it off"
}
await() {
    for second in $(seq $((120 * ${SLOW:-1}))); do
        grep -q "$1" console && return
        kill -0 $qemu 2>/dev/null || break
        sleep 1
    done
    grep -q "$1" console || fail "no $1"
}
driver vfio-pci
start
echo 'tac /mnt/pattern >/mnt/answer; umount /mnt; grep -c virtio.*req /proc/interrupts; echo wro""te' >&3
await '^wrote'
# VFIO pins it and counts it as locked.
locked=$(sed -n 's/VmLck:[ \t]*\([0-9]*\) kB/\1/p' /proc/$qemu/status)
echo "all of the guest's memory is pinned: $((locked >= 262144))"
echo 'device_del passed' >&4
echo 'until [ ! -e /dev/vda ]; do sleep 1; done; echo go""ne' >&3
await '^gone'
driver virtio-pci
mount -t ext4 /dev/vda mnt && echo "the guest wrote $(sha256sum <mnt/answer)" && rm mnt/answer && umount mnt || fail "the disk"
echo exit >&3
wait $qemu || fail "QEMU exited with $?"
driver vfio-pci
start
echo 'while tac /mnt/pattern >/mnt/answer; do sync; echo ro""und; done' >&3
await '^round'
kill -9 $qemu
wait $qemu
driver virtio-pci
mount -t ext4 /dev/vda mnt && [ "$(sha256sum <mnt/pattern)" = "$(sha256sum </guest/pattern)" ] && umount mnt || fail "what is left"
echo "the VM was killed"
