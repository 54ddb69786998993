# In name spaces of mounts and processes: the packages $2... are installed on the disk that is the file $0, mounted at $1; what comes up
# first there are stock's modules, as before.
disk=$0 root=$1
shift
mount --make-rprivate /
mount -o loop "$disk" "$root"
mkdir -p "$root/hsave"
cp "$@" "$root/hsave/"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" sh -ec '
    apt-get install -y --no-install-recommends /hsave/*.deb
    rm /hsave/*.deb
    hsavectl use stock --next-boot
    sync'
