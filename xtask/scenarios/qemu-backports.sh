# QEMU of Debian 13's backports, a newer one than Debian 13's: the same guests as with that, with disk, network and restart, as a guest of
# Hyper-V's, and moving from one QEMU to another; the same on stock's modules.
#: qemu-backports
#: compare
#: kernels 6.12
#: slow all
#: timeout 900
#: seconds 200
export LD_LIBRARY_PATH=/backports/lib QEMU='/backports/qemu-system-x86_64 -L /backports/firmware'
$QEMU --version | head -n 1
CPUS=2 boot-guest q35 client || exit 1
rm -r /tmp/*
IRQCHIP=split boot-guest pc client || exit 2
rm -r /tmp/*
CPU=host,kvm=off,hv-time=on,hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,hv-synic=on,hv-stimer=on \
    boot-guest q35 check || exit 3
rm -r /tmp/*
CPUS=2 boot-guest q35 moves >/tmp/log || { cat /tmp/log; exit 4; }
tail -n 1 /tmp/log
