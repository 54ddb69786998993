#!/bin/sh
# Builds the strict processor; xtask starts it inside an unpacked Debian 13, where /qemu holds the source package (source/),
# our files and patches (files/, patches/) and takes what is built (build/).
set -eu
cd /qemu
mkdir tree build
tar -xf source/qemu_*.orig.tar.xz --strip-components=1 --no-same-owner -C tree
tar -xf source/qemu_*.debian.tar.xz --no-same-owner -C tree
cd tree
# Debian's own patches first, then ours in the order of their numbers.
for patch in $(sed '/^#/d; s/ .*//' debian/patches/series) ; do
    patch --silent --force --strip=1 <"debian/patches/$patch" || { echo "Debian's $patch does not apply"; exit 1; }
done
cp -R /qemu/files/. .
for patch in /qemu/patches/*.patch; do
    patch --silent --force --strip=1 --fuzz=0 --no-backup-if-mismatch <"$patch" || { echo "${patch##*/} does not apply"; exit 1; }
done
cd ../build
../tree/configure --cc=gcc --target-list=x86_64-softmmu --without-default-features --enable-system --enable-tcg --enable-plugins \
    --disable-docs --disable-tools --disable-guest-agent --disable-download --disable-install-blobs --disable-werror \
    --disable-kvm --disable-debug-info --without-default-devices --with-devices-x86_64=strict
ninja qemu-system-x86_64
strip qemu-system-x86_64
