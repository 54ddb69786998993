#!/bin/sh
# Runs scenarios on this very machine, on stock's modules and on ours, and puts back what was loaded, whatever happens (`./x test --here`).
#
# here.sh DIR: DIR/stock and DIR/ours hold kvm.ko and kvm-amd.ko, DIR/scripts a script for each scenario, and DIR/list a line for each: its
# name and its seconds. Where there is DIR/root they run in that. DIR/results gets a line for each that was run (name, whose
# modules, exit status, seconds), DIR/out what it printed, and the kernel's log of that time. The exit status is not 0 unless what was
# loaded is back: stock's modules with the parameters that they had (DIR/parameters), or none.
#
# Programs leave out what outlasts them, and is no module: HSAVE_HERE says that this is somebody's machine.
#
# Statuses of a scenario beside its own: 124, it took too long; 126, it is not in its cgroup; 125, its modules could not be loaded or unloaded.
set -u
PATH=$PATH:/usr/sbin:/sbin
dir=$1

loaded() { grep -q "^$1 " /proc/modules; }

# What a scenario left running is in its cgroup, daemons that have gone to a session of their own as well.
group=$dir/cgroup/hsave-here
sweep() {
    [ -e "$group" ] || return 0
    echo 1 >"$group/cgroup.kill"
    for try in 1 2 3 4 5 6 7 8 9 10; do
        grep -q '^populated 0' "$group/cgroup.events" && break
        sleep 1
    done
    find "$group" -depth -type d -exec rmdir {} \;
}

# The last file of a guest that was killed may still be closed by the kernel.
unload() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        for module in hsave_0_2 kvm_amd kvm; do
            if loaded $module; then rmmod $module 2>/dev/null; fi
        done
        loaded kvm || return 0
        sleep 1
    done
    return 1
}

# The parameters of the module $1 as words for insmod, one a line. Not all can be read, by anyone.
parameters() {
    for file in /sys/module/"$1"/parameters/*; do
        value=$(cat "$file" 2>/dev/null) && echo "${file##*/}=$value"
    done
    return 0
}

# The words of $2 that the module $1, which is loaded, has otherwise.
otherwise() {
    parameters "$1" >"$dir/now"
    grep -vxF -f "$dir/now" "$2"
}

# Loads stock's as they were. Only what differs from what they have by themselves is asked for: some words taint the kernel. A value has no space
# in it.
put_back() {
    unload || return 1
    for module in kvm kvm_amd; do
        noted=$dir/parameters/$module
        [ -e "$noted" ] || continue
        file=$dir/stock/$(echo $module | tr _ -).ko
        insmod "$file" || return 1
        words=$(otherwise $module "$noted")
        [ -n "$words" ] || continue
        rmmod $module && insmod "$file" $words || return 1
        [ -z "$(otherwise $module "$noted")" ] || { echo "of $module are otherwise: $(otherwise $module "$noted")"; return 1; }
    done
}

load() { unload && insmod "$dir/$1/kvm.ko" && insmod "$dir/$1/kvm-amd.ko" && [ -c /dev/kvm ]; }

# A process of its own, in a session of its own, that no key and no signal to the others reaches. It waits for the end of whoever has the pipe
# open for writing.
if [ "${2:-}" = restore ]; then
    cat >/dev/null
    sweep
    rm -f "$dir/restored"
    put_back && [ ! -e /sys/kernel/hsave ] && touch "$dir/restored"
    exit
fi

if loaded kvm_intel || loaded kvm_amd && [ "$(sed -n 's/^kvm_amd [0-9]* \([0-9]*\) .*/\1/p' /proc/modules)" != 0 ]; then
    echo "KVM is in use: stop the virtual machines first" >&2
    exit 2
fi
# Else guests of the other pair would have it back with parameters that are not its own.
if [ -e /sys/kernel/hsave ]; then
    echo "hsave is loaded: \`hsavectl use stock\` first, or unload it" >&2
    exit 2
fi
rm -rf "$dir/parameters"
mkdir -p "$dir/out" "$dir/parameters" || exit 2
for module in kvm kvm_amd; do
    if loaded $module; then parameters $module >"$dir/parameters/$module" || exit 2; fi
done
rm -f "$dir/alive" "$dir/restored" "$dir/results"
mkdir -p "$dir/cgroup"
if [ ! -e "$dir/cgroup/cgroup.procs" ] && ! mount -t cgroup2 cgroup2 "$dir/cgroup"; then
    echo "this takes cgroup2" >&2
    exit 2
fi
mkfifo "$dir/alive" || exit 2
setsid sh "$0" "$dir" restore <"$dir/alive" >"$dir/restore.log" 2>&1 &
guard=$!
exec 9>"$dir/alive"

scenario() {
    name=$1 whose=$2 limit=$3 seconds=0
    out=$dir/out/$name.$whose
    rm -f "$dir/status"
    # The log is of loading and unloading too.
    unload 9>&-
    echo "hsave: here, $name $whose" >/dev/kmsg
    if mkdir -p "$group" 2>"$out" && load "$whose" 9>&- 2>>"$out"; then
        setsid sh -c '
            echo 0 >"$1/cgroup/hsave-here/cgroup.procs" || { echo 126 >"$1/status"; exit; }
            if [ -d "$1/root" ]; then
                cp "$1/$3"/*.ko "$1/root/modules/" && cp "$1/scripts/$2" "$1/root/script" &&
                chroot "$1/root" /bin/env -i PATH=/bin:/usr/bin HOME=/ SLOW=1 HSAVE_HERE=1 sh /script
            else
                SLOW=1 HSAVE_HERE=1 sh "$1/scripts/$2"
            fi
            echo $? >"$1/status"' here "$dir" "$name" "$whose" </dev/null >"$out" 2>&1 9>&- &
        while [ ! -s "$dir/status" ] && [ $seconds -lt "$limit" ]; do
            sleep 1
            seconds=$((seconds + 1))
        done
        sweep
        [ -s "$dir/status" ] || echo 124 >"$dir/status"
        unload 9>&- || echo 125 >"$dir/status"
        # Without its first line it is known that there is less of it than there was.
        dmesg | awk -v mark="hsave: here, $name $whose" 'index($0, mark) { log_ = "" } { log_ = log_ $0 "\n" } END { printf "%s", log_ }' >"$out.log"
    else
        echo 125 >"$dir/status"
    fi
    echo "$name $whose $(cat "$dir/status") $seconds" >>"$dir/results"
    echo "$name on $whose: $(cat "$dir/status"), $seconds s"
}

while read -r name limit <&3; do
    for whose in stock ours; do
        scenario "$name" $whose "$limit" 3<&-
    done
done 3<"$dir/list"

exec 9>&-
wait $guard
[ -e "$dir/restored" ] || { echo "what was loaded is NOT back: $(cat "$dir/restore.log")" >&2; exit 1; }
