# Kernels for 32-bit processors: Debian 12's with page-table entries of 4 bytes and, with PAE, of 8. Each starts twice, uses disk and
# network, and prints what it prints on stock's modules.
#: i386-guests
#: compare
#: kernels 6.12
#: slow all
#: timeout 900
#: seconds 150
GUEST=/guest-686 boot-guest pc client || exit 1
rm -r /tmp/*
GUEST=/guest-686-pae CPUS=2 IRQCHIP=split boot-guest q35 client || exit 2
