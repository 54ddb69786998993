#!/bin/sh
# boot-disk DISK [ISO]: boots what is on a disk on /dev/kvm in unmodified QEMU, in the emulated host (or, by `./x run --here`, on this
# machine), with the options that Proxmox gives QEMU for a guest that may be Windows. Its first serial port is the terminal.
# From the environment: FIRMWARE (seabios or ovmf; what the disk's partition table asks for), BUS (sata or virtio: of the disk and the
# network card), CPUS (2), MEMORY (2048, in megabytes), FORMAT (raw), SNAPSHOT (what is written to the disk is lost), VNC (where the screen
# is shown, as QEMU's -vnc takes it), CPU and MACHINE (instead of Proxmox's).
disk=$1 iso=$2
shift
[ -z "$iso" ] || shift
work=${WORK:-/tmp} qemu=${QEMU:-qemu-system-x86_64} format=${FORMAT:-raw}
[ -c /dev/kvm ] || { echo "there is no /dev/kvm"; exit 1; }
# Byte N of the disk's first sector, in octal. The emulated host has the disk's contents as a device; on this machine qemu-img reads them.
first=$disk
if [ -z "$FIRMWARE" ] && [ $format != raw ]; then
    first=$work/sector
    qemu-img dd -f $format -O raw bs=512 count=1 "if=$disk" "of=$first" ||
        { echo "the disk's partition table cannot be read: \`apt install qemu-utils\`, or say --firmware"; exit 1; }
fi
sector() { dd if="$first" bs=1 skip=$1 count=1 2>/dev/null | od -An -to1 | tr -d ' '; }
# A partition table of GPT's (type 0xee), a first partition for EFI (0xef), or nothing to boot from yet: UEFI.
if [ -z "$FIRMWARE" ]; then
    FIRMWARE=seabios
    case $(sector 510)$(sector 511)/$(sector 450) in
    125252/356 | 125252/357) FIRMWARE=ovmf ;;
    125252/*) ;;
    *) FIRMWARE=ovmf ;;
    esac
fi
echo "boot-disk: $FIRMWARE"
hyperv=hv_ipi,hv_relaxed,hv_reset,hv_runtime,hv_spinlocks=0x1fff,hv_stimer,hv_synic,hv_time,hv_vapic,hv_vpindex
set -- -no-user-config -nodefaults -accel kvm -M ${MACHINE:-q35,hpet=off} \
    -cpu ${CPU:-host,$hyperv,+kvm_pv_eoi,+kvm_pv_unhalt} -smp ${CPUS:-2} -m ${MEMORY:-2048} \
    -rtc base=localtime,driftfix=slew -global kvm-pit.lost_tick_policy=discard \
    -drive "file=$disk,format=$format,if=none,id=disk${SNAPSHOT:+,snapshot=on}" \
    -vga std -device qemu-xhci -device usb-tablet -netdev user,id=net \
    -chardev stdio,id=console,signal=off -serial chardev:console "$@"
case ${BUS:-sata} in
virtio) set -- -device virtio-blk-pci,drive=disk,bootindex=0 -device virtio-net-pci,netdev=net,romfile= "$@" ;;
*) set -- -device ide-hd,drive=disk,bus=ide.0,bootindex=0 -device e1000,netdev=net,romfile= "$@" ;;
esac
[ -z "$iso" ] || set -- -drive "file=$iso,format=raw,media=cdrom,readonly=on,if=none,id=iso" \
    -device ide-cd,drive=iso,bus=ide.2,bootindex=1 "$@"
if [ $FIRMWARE = ovmf ]; then
    # Beside the disk, because boot entries that an installation makes are kept there; but not beside a device.
    vars=$work/vars
    [ ! -f "$disk" ] || [ -n "$SNAPSHOT" ] || vars=$disk.vars
    [ -e "$vars" ] || cp /usr/share/OVMF/OVMF_VARS_4M.fd "$vars" || exit 1
    set -- -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
        -drive "if=pflash,format=raw,file=$vars" "$@"
fi
if [ -n "$VNC" ]; then set -- -vnc "$VNC" "$@"; else set -- -display none "$@"; fi
exec $qemu "$@"
