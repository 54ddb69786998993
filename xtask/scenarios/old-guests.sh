# What runs on a PC before Linux does, or instead: GRUB, from a CD-ROM by El Torito, at whose prompt somebody types and which starts a
# kernel for 32-bit processors; iPXE, which configures its network and fetches a file; memtest86+, for 64 and for 32 bits, once through
# its tests but for the one that waits. They say the same on stock's modules.
#: file old/grub.iso trixie grub-rescue-pc usr/lib/grub-rescue/grub-rescue-cdrom.iso
#: file old/ipxe trixie ipxe usr/lib/ipxe/ipxe.lkrn
#: file old/memtest64 trixie memtest86+ boot/memtest86+x64.bin
#: file old/memtest32 trixie memtest86+ boot/memtest86+ia32.bin
#: i386-guests
#: compare
#: kernels 6.12
#: slow all
#: timeout 1500
#: seconds 200
cd /tmp
escape=$(printf '\033')
# What the console shows, without its colours and where it shows it.
seen() { tr -d '\r' <console | sed "s/$escape\[[0-9;?]*[A-Za-z]//g"; }
fail() { echo "$*"; seen | tail -n 40; kill $qemu; exit 1; }
# start ARGUMENTS: a guest without a screen, whose BIOS shows on the serial port what programs show on theirs; what is written to file
# descriptor 3 is typed there.
start() {
    rm -f typed console
    mkfifo typed
    qemu-system-x86_64 -accel kvm -cpu host -nodefaults -display none -no-reboot \
        -chardev stdio,id=console,signal=off -serial chardev:console "$@" <typed >console 2>&1 &
    qemu=$!
    exec 3>typed
}
# Until the console has shown the words, or with a second word, shows them in its last line.
await() {
    for second in $(seq $((200 * ${SLOW:-1}))); do
        seen | { [ -z "$2" ] && cat || tail -n 1; } | grep -q "$1" && return
        kill -0 $qemu 2>/dev/null || break
        sleep 1
    done
    seen | grep -q "$1" || fail "no $1"
}
# The guest has switched its power off.
ended() {
    exec 3>&-
    wait $qemu || fail "QEMU exited with $?"
}

mkdir -p disk/boot
cp /guest-686/vmlinuz /guest-686/initrd disk/boot
cat >disk/grub.cfg <<'CFG'
linux (hd0,msdos1)/boot/vmlinuz console=ttyS0 panic=-1 hsave=check
initrd (hd0,msdos1)/boot/initrd
boot
CFG
start -M q35,graphics=off -m 256 -drive file=/old/grub.iso,format=raw,media=cdrom,readonly=on,if=none,id=cd \
    -device ide-cd,drive=cd,bus=ide.1,bootindex=0 \
    -drive file=fat:rw:disk,format=raw,if=none,id=disk -device ide-hd,drive=disk,bus=ide.0
await 'GNU GRUB'
printf c >&3
await '^grub> $' last
printf 'lsmmap\r' >&3
sleep 2
await '^grub> $' last
# A keyboard keeps few keys: no more than one line at a time.
printf 'configfile (hd0,msdos1)/grub.cfg\r' >&3
await '^guest: done'
ended
echo "GRUB: $(seen | grep -c 'base_addr = .*RAM') pieces of memory"
seen | grep '^guest:'

mkdir -p tftp
cp /guest/pattern tftp/pattern
cat >script <<'IPXE'
#!ipxe
echo ipxe: its script
dhcp
echo ipxe: ${net0/ip} ${net0/netmask} on ${net0/chip}
imgfetch --name pattern tftp://10.0.2.2/pattern
imgstat pattern ||
poweroff
IPXE
ifconfig lo 127.0.0.1 up
start -M q35,graphics=off -m 256 -kernel /old/ipxe -initrd script -netdev user,id=net,tftp=tftp \
    -device virtio-net-pci,netdev=net,romfile=
await '^pattern : '
ended
seen | grep '^ipxe: \|^pattern : '

for bits in 64 32; do
    start -M pc -m 16 -kernel /old/memtest$bits -append 'console=ttyS0,115200 nopause nosm nobench'
    await '#10 '
    kill $qemu
    wait $qemu
    exec 3>&-
    tr '\033' '\n' <console | sed -n 's/.*\(# *[0-9]* *\[[^]]*\]\).*/memtest: \1/p' | uniq
    errors=$(tr '\033' '\n' <console | sed -n 's/.*Errors: *\([0-9]*\).*/\1/p' | sort -u)
    echo "memtest, $bits bits: errors: $errors"
done
