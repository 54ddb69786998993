# Debian's firmware with system management mode, where its variables are, and Microsoft's keys enrolled in them.
# It refuses a loader whose signature is wrong, and starts Debian's shim, which starts Debian's GRUB, which starts Debian's
# kernel, and no other. What is written to a variable by the one start is there at the next. Not compared with stock: the emulator
# aborts with stock's modules.
#: secure-boot
#: slow all
#: timeout 900
#: seconds 200
work=/tmp
cp /secure/OVMF_VARS_4M.ms.fd $work/vars || exit 1
# secure NAME DIRECTORY PATTERN: starts what the firmware finds in the directory, until its console shows the pattern.
secure() {
    name=$1 directory=$2 pattern=$3
    shift 3
    qemu-system-x86_64 -accel kvm -cpu host -M q35,smm=on,pflash0=code,pflash1=vars -m 512 -smp ${CPUS:-1} -nodefaults \
        -display none -no-reboot -global driver=cfi.pflash01,property=secure,value=on -global ICH9-LPC.disable_s3=1 \
        -blockdev driver=file,node-name=code,filename=/secure/OVMF_CODE_4M.secboot.fd,read-only=on \
        -blockdev driver=file,node-name=vars,filename=$work/vars \
        -chardev stdio,id=console,signal=off -serial chardev:console \
        -drive file=fat:rw:$directory,format=raw,if=none,id=esp -device virtio-blk-pci,drive=esp,bootindex=0 \
        >$work/$name.console 2>&1 </dev/null &
    qemu=$!
    for second in $(seq $((180 * ${SLOW:-1}))); do
        grep -q "$pattern" $work/$name.console && break
        kill -0 $qemu 2>/dev/null || break
        sleep 1
    done
    sleep 2
    kill $qemu
    wait $qemu
    if grep -q "$pattern" $work/$name.console; then
        echo "$name: $(grep -o "$pattern" $work/$name.console | head -n 1)"
    else
        echo "$name: no $pattern"
        tr -d '\033' <$work/$name.console | tail -n 30
        exit 1
    fi
}
boot=EFI/BOOT
mkdir -p $work/signed/$boot $work/signed/EFI/debian
cp /secure/shim $work/signed/$boot/BOOTX64.EFI
# Shim starts what lies beside it under this name. It wants to see from which generation it is (SBAT), which a kernel does not say.
cp /secure/grub $work/signed/$boot/grubx64.efi
cp /guest/vmlinuz $work/signed/vmlinuz
cat >$work/signed/EFI/debian/grub.cfg <<'CFG'
search --file --set=root /vmlinuz
linux /vmlinuz console=ttyS0 panic=-1
boot
CFG
# The same with one byte of the loader that is another.
cp -r $work/signed $work/forged
printf 'X' | dd of=$work/forged/$boot/BOOTX64.EFI bs=1 seek=20000 conv=notrunc 2>/dev/null
before=$(sha256sum <$work/vars)
secure forged $work/forged "Access Denied"
grep -q "EFI stub" $work/forged.console && { echo "a forged loader was started"; exit 1; }
secure signed $work/signed "EFI stub: UEFI Secure Boot is enabled"
[ "$before" != "$(sha256sum <$work/vars)" ] || { echo "no variable was written"; exit 1; }
# A kernel that is not Debian's, by loaders that are.
printf 'X' | dd of=$work/signed/vmlinuz bs=1 seek=2000000 conv=notrunc 2>/dev/null
secure kernel $work/signed "bad shim signature"
