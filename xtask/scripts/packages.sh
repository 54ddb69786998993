#!/bin/sh
# The packages on a plain Debian, in a chroot: installed, upgraded, removed, purged; after each step modprobe would load what it
# should. Words: the directory with the packages, that with the same of a newer version, and what comes first, kernel or packages.
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
old=$1 new=$2 first=$3

fail() { echo "packages.sh: $*"; exit 1; }
install() { apt-get install -y --no-install-recommends "$@"; }
kernel() { install linux-image-cloud-amd64 linux-headers-cloud-amd64; }
# Both modules of each kernel come from this place.
from() {
    local dir release module file
    for dir in /lib/modules/*/; do
        release=$(basename "$dir")
        for module in kvm kvm-amd; do
            file=$(modinfo -k "$release" -F filename "$module")
            echo "$module of $release: $file"
            case $file in "/lib/modules/$release/$1/$module".ko*) ;; *) fail "$module is not from $1" ;; esac
        done
    done
}
version() { dpkg-deb -f "$1"/hsave-dkms_*.deb Version; }
step() { echo "=== $*"; }

step "packages and a kernel"
apt-get update
if [ "$first" = kernel ]; then
    kernel
    from kernel/arch/x86/kvm
    install "$old"/*.deb
else
    install "$old"/*.deb
    kernel
fi
dkms status
dkms status -m hsave -v "$(version "$old")" | grep -q ': installed' || fail "dkms has not installed it"
from updates/dkms
hsavectl status
hsavectl report >/dev/null
[ "$(hsavectl --version)" = "hsavectl $(version "$old")" ] || fail "another version of hsavectl"
man -w hsavectl >/dev/null 2>&1 || [ -e /usr/share/man/man8/hsavectl.8.gz ] || [ ! -d /usr/share/man/man8 ] || fail "no manual page"

for dir in /lib/modules/*/; do
    [ -n "$(find "$dir/kernel/arch/x86/kvm" -name 'kvm-amd.ko*')" ] || fail "the kernel's own modules are gone from $dir"
done

step "a choice for the next boot, which a new index keeps"
hsavectl use stock --next-boot
from kernel/arch/x86/kvm
for dir in /lib/modules/*/; do depmod -a "$(basename "$dir")"; done
from kernel/arch/x86/kvm
hsavectl use hsave --next-boot
from updates/dkms

step "a kernel that it was not made for is skipped"
release=$(basename /lib/modules/*/)
mkdir -p "/lib/modules/9.9.9-none/kernel"
ln -s "$(readlink -f "/lib/modules/$release/build")" /lib/modules/9.9.9-none/build
status=0
dkms build -m hsave -v "$(version "$old")" -k 9.9.9-none || status=$?
[ $status = 77 ] || fail "dkms said $status for a kernel that is to be skipped"
rm -r /lib/modules/9.9.9-none

step "another kernel beside it, and instead of it"
other=$(apt-cache pkgnames linux-image- | sed -n 's/^linux-image-\([0-9].*-cloud-amd64\)$/\1/p' | sort -V | grep -vxF "$release" | tail -n 1)
if [ -n "$other" ]; then
    install "linux-image-$other" "linux-headers-$other"
    [ -d "/lib/modules/$other" ] || fail "there is no kernel $other"
    from updates/dkms
    apt-get purge -y linux-image-cloud-amd64 linux-headers-cloud-amd64 "linux-image-$release" "linux-headers-$release"
    from updates/dkms
    [ ! -e "/lib/modules/$release/updates" ] || fail "what was built for $release outlived it"
    kernel
    from updates/dkms
    apt-get purge -y "linux-image-$other" "linux-headers-$other"
    from updates/dkms
else
    echo "the archive has one kernel of this kind"
fi

step "a newer version"
hsavectl use stock --next-boot
install "$new"/*.deb
from kernel/arch/x86/kvm
hsavectl use hsave --next-boot
from updates/dkms
dkms status
[ "$(dkms status -m hsave | grep -c installed)" = 1 ] || fail "dkms has another than one version"
dkms status -m hsave | grep -qF "$(version "$new")" || fail "dkms has not the newer version"

step "back to the older version"
apt-get install -y --allow-downgrades --no-install-recommends "$old"/*.deb
from updates/dkms

step "removed"
apt-get remove -y hsave-dkms
from kernel/arch/x86/kvm
[ -z "$(dkms status -m hsave)" ] || fail "dkms knows it still"
[ -e /etc/depmod.d/hsave.conf ] || fail "removal has forgotten the choice"
install "$old"/hsave-dkms*.deb
from updates/dkms

step "purged"
apt-get purge -y hsave-dkms hsave-tools
from kernel/arch/x86/kvm
left=$(find / -xdev -not -path "$PWD/*" -name '*hsave*' -not -path '/proc/*' | grep -v "^$PWD\$" || true)
[ -z "$left" ] || fail "this is left: $left"

step "autopkgtest"
mkdir -p tree/debian
cp -r xtask/packaging/tests xtask/packaging/changelog tree/debian/
printf 'Source: hsave\n\nPackage: hsave-dkms\nArchitecture: amd64\n\nPackage: hsave-tools\nArchitecture: amd64\n' >tree/debian/control
install autopkgtest mandoc
kernel
install "$old"/*.deb
# 8: some were skipped, as those that need a machine of their own are here.
status=0
autopkgtest --no-built-binaries --output-dir=/tmp/autopkgtest tree -- null || status=$?
cat /tmp/autopkgtest/summary
[ $status = 0 ] || [ $status = 2 ] || [ $status = 8 ] || fail "autopkgtest says $status"
grep -q '^modules *PASS' /tmp/autopkgtest/summary && grep -q '^command *PASS' /tmp/autopkgtest/summary || fail "autopkgtest"
if grep -q FAIL /tmp/autopkgtest/summary; then fail "autopkgtest"; fi

if [ "$first" = packages ]; then
    step "lintian"
    install lintian
    lintian --fail-on error,warning,info --display-info --info --allow-root "$old"/*.deb
fi
echo "=== done"
