#!/bin/sh
# boot-guest MACHINE MODE [QEMU ARGUMENTS]: boots the Linux guest on /dev/kvm in unmodified QEMU, in the
# emulated host (or, by `./x run --here`, on this machine). MACHINE is microvm, q35 or pc; MODE is what
# guest-init does: check, client, moves, demo or shell. Afterwards the guest's work is checked from here.
# From the environment: CPUS (1), CPU (host), IRQCHIP (on or split; QEMU's choice), FIRMWARE (seabios, qboot or ovmf); and for a guest that
# moves: CHANGE, and it goes on with stock's modules for a while, or UPGRADES: it stays, and its engine is another one so many times; with
# PLUG besides, while it moves to another QEMU, and while processors and memory are plugged in there.
machine=$1 mode=$2
shift 2
work=${WORK:-/tmp} guest=${GUEST:-/guest} qemu=${QEMU:-qemu-system-x86_64}
disk=$work/disk

[ -c /dev/kvm ] || { echo "there is no /dev/kvm"; exit 1; }
dd if=/dev/zero of=$disk bs=1M count=16 2>/dev/null
mke2fs -F $disk >/dev/null 2>&1 || { echo "cannot make a file system for the guest"; exit 1; }
mkdir -p $work/mnt
mount -t ext4 -o loop $disk $work/mnt && cp $guest/pattern $work/mnt/ && umount $work/mnt || exit 1

# Boards that have a PCI bus take PCI devices.
case $machine in
microvm) bus=device net=virtio-net-device ;;
*) bus=pci net=virtio-net-pci,romfile= ;;
esac
set -- -M $machine${IRQCHIP:+,kernel-irqchip=$IRQCHIP} -smp ${CPUS:-1}${PLUG:+,maxcpus=$((CPUS + 1))} -m 512${PLUG:+,slots=1,maxmem=1G} -device virtio-blk-$bus,drive=disk "$@"
case ${FIRMWARE:-seabios} in
qboot) set -- -bios qboot.rom "$@" ;;
ovmf)
    cp /usr/share/OVMF/OVMF_VARS_4M.fd $work/vars
    set -- -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
        -drive if=pflash,format=raw,file=$work/vars "$@"
    ;;
esac
# A client restarts once by itself, and moves data over QEMU's user network from and to this host.
if [ $mode = client ] || [ $mode = moves ]; then
    set -- -netdev user,id=net -device $net,netdev=net "$@"
    ifconfig lo 127.0.0.1 up
    mkdir -p $work/www/cgi-bin
    ln -sf $guest/pattern $work/www/pattern
    printf '#!/bin/sh\ncat >%s/sent\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\n' $work >$work/www/cgi-bin/put
    chmod +x $work/www/cgi-bin/put
    rm -f $work/sent
    httpd -f -p 127.0.0.1:8000 -h $work/www &
    server=$!
else
    set -- -no-reboot "$@"
fi
# Where the host is loaded, the guest finds its TSC wanting now and then; its words about that would fall into the lines of others.
append="console=ttyS0 panic=-1 printk.time=0 tsc=nowatchdog hsave=$mode"
# Where this host's time is not its own, its kernel has no watchdogs, and guests have none either.
[ -z "$UPGRADES" ] || append="$append hsave-watch"
grep -q nowatchdog /proc/cmdline && append="$append nowatchdog nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 \
workqueue.watchdog_thresh=0 sysctl.kernel.hung_task_timeout_secs=0"
case $mode in demo | shell) append="$append quiet" ;; esac
boot() {
    $qemu -accel kvm -cpu ${CPU:-host} -nodefaults -display none -chardev stdio,id=console,signal=off \
        -serial chardev:console -drive file=$disk,format=raw,if=none,id=disk \
        -kernel $guest/vmlinuz -initrd $guest/initrd -append "$append" "$@"
}
if [ $mode = shell ]; then
    boot "$@"
    exit
fi
# A QEMU by the name of $1, with a monitor on two pipes.
begin() {
    name=$1
    shift
    mkfifo $work/$name.in $work/$name.out
    cat $work/$name.out >$work/$name.said &
    { boot -chardev pipe,id=monitor,path=$work/$name -mon monitor "$@" 2>&1; echo $? >$work/status; } >$work/$name.console &
}
# Until $2 is in file $1, which $3 does something for; two minutes at most, on an idle machine.
await() {
    for second in $(seq $((120 * ${SLOW:-1}))); do
        grep -q "$2" $1 2>/dev/null && return
        eval "$3"
        sleep 1
    done
    echo "no $2 in $1"
    # Where the guest is, says its QEMU; those that are gone do not listen.
    for it in $work/?.in; do printf 'info registers -a\ninfo lapic\n' | timeout 2 tee $it >/dev/null; done
    sleep 3
    tail -n 20 $work/?.console
    for it in $work/?.said; do tail -n 150 $it | sed 's/\x1b\[[KD]//g'; done
    exit 1
}
# The state of the guest of $1 goes to $2.
send() {
    echo "migrate -d \"$2\"" >$work/$1.in
    # Only of what it has sent it says how long the guest stood still; of what it has received it says "completed", too.
    await $work/$1.said "^downtime: \|, down=" "echo info migrate >$work/$1.in"
    echo quit >$work/$1.in
    echo "host: the guest has left $1"
}
# KVM's modules are those in directory $1 from now on.
change() {
    # The last QEMU may still be on its way out.
    until rmmod kvm_amd 2>/dev/null; do sleep 1; done
    rmmod kvm || exit 1
    for module in $(cat $1/kvm); do
        grep -q "^$(echo $module | tr - _) " /proc/modules || insmod $1/$module.ko || exit 1
    done
    echo "host: KVM is that in $1"
}
# From the QEMU $1 through a file to another, $2.
through_a_file() {
    from=$1 to=$2
    shift 2
    send $from "exec:cat >$work/state"
    [ -z "$where" ] || change $where
    begin $to -incoming "exec:cat $work/state" "$@"
    goes_on $to
}
# What has come to $1 is there, and the guest works there for a while.
goes_on() {
    await $work/$1.said "VM status: running" "echo info status >$work/$1.in"
    sleep 5
}
# The VM goes to the engine in which it is not: 1, and why, if it does not.
hand_over() {
    engine=kvm_amd
    [ $(cat $vm/engine) != kvm_amd ] || engine=hsave_0_2
    if echo $engine >$vm/upgrade; then
        pause=$(cat $vm/pause_ns) handed=$((handed + 1))
        [ $pause -le $longest ] || longest=$pause
    else
        cat $vm/error
        refused=$((refused + 1))
        return 1
    fi
}
# What became of those since the last time; some have to have succeeded.
handed_over() {
    echo "host: $1: handed over $handed times, refused $refused times, longest pause $((longest / 1000)) us"
    [ $handed -gt 0 ] || exit 1
    handed=0 refused=0 longest=0
}
# The VM of the only QEMU goes from one engine to the other, $UPGRADES times in all, at any moment of what the guest does.
upgrade() {
    begin a "$@"
    await $work/a.console "guest: works" :
    vm=$(echo /sys/kernel/hsave/vms/*) handed=0 refused=0 longest=0 to=a
    for n in $(seq $UPGRADES); do
        hand_over || { tail -n 20 $work/a.console; exit 1; }
        sleep 0.$((n % 7))
    done
    handed_over "a guest that works"
    [ -z "$PLUG" ] || { upgrade_moving "$@"; upgrade_plugged; }
    touch $work/www/enough
    await $work/$to.console "guest: done" :
    wait $!
    cat $work/?.console
}
# While it moves to another QEMU, which is slow at first.
upgrade_moving() {
    begin b -incoming unix:$work/way "$@"
    until [ -S $work/way ]; do sleep 1; done
    for it in /sys/kernel/hsave/vms/*; do [ $it = $vm ] || next=$it; done
    echo "migrate_set_parameter max-bandwidth 4M" >$work/a.in
    echo "migrate -d unix:$work/way" >$work/a.in
    await $work/a.said active "echo info migrate >$work/a.in"
    while [ $((handed + refused)) -lt 10 ]; do hand_over; done
    ! grep -q completed $work/a.said || { echo "the guest was gone too soon"; exit 1; }
    handed_over "a guest that moves"
    echo "migrate_set_parameter max-bandwidth 10G" >$work/a.in
    until grep -q completed $work/a.said; do
        echo "info migrate" >$work/a.in
        hand_over
    done
    handed_over "a guest whose last pages move"
    echo quit >$work/a.in
    vm=$next to=b
    hand_over && handed_over "a guest that has moved" || exit 1
}
# While memory comes, and a processor comes and goes, twice. The VMM's system calls are waited for: some may be too slow.
upgrade_plugged() {
    blocks=$(sed -n 's/^guest: has .* cpus, \([0-9]*\) blocks.*/\1/p' $work/a.console)
    more="$((blocks + 1)) blocks of memory, change"
    echo "object_add memory-backend-ram,id=more,size=128M" >$work/b.in
    echo "device_add pc-dimm,id=dimm,memdev=more" >$work/b.in
    await $work/b.console "guest: has $CPUS cpus, $more 2" hand_over
    for change in 3 5; do
        echo "device_add ${CPU:-host}-x86_64-cpu,id=cpu,socket-id=0,core-id=$CPUS,thread-id=0" >$work/b.in
        await $work/b.console "guest: has $((CPUS + 1)) cpus, $more $change" hand_over
        echo "device_del cpu" >$work/b.in
        await $work/b.console "guest: has $CPUS cpus, $more $((change + 1))" hand_over
    done
    handed_over "a guest that gets a processor and memory"
}
# From one QEMU to another while the guest works, and through a file to a third.
move() {
    begin a "$@"
    await $work/a.console "guest: works" :
    begin b -incoming unix:$work/way "$@"
    until [ -S $work/way ]; do sleep 1; done
    send a unix:$work/way
    goes_on b
    where=${CHANGE:+/stock} through_a_file b c "$@"
    [ -z "$CHANGE" ] || where=/modules through_a_file c d "$@"
    touch $work/www/enough
    await $work/$to.console "guest: done" :
    wait $!
    cat $work/?.console
}
moves=move
[ -z "$UPGRADES" ] || moves=upgrade
if [ $mode = moves ]; then $moves "$@"; else boot "$@" 2>&1; echo $? >$work/status; fi | tee $work/console
status=$(cat $work/status)
[ -z "$server" ] || kill $server
[ $status = 0 ] || { echo "QEMU exited with $status"; exit 1; }
grep -q "^guest: done" $work/console || { echo "the guest did not reach its end"; exit 1; }
if [ $mode = moves ]; then
    grep "^guest: all is as it was" $work/console
    exit
fi
upside_down=$(tac <$guest/pattern | sha256sum)
mount -t ext4 -o loop $disk $work/mnt || exit 1
wrote=$(sha256sum <$work/mnt/answer)
umount $work/mnt
echo "host: the disk holds $wrote"
[ "$wrote" = "$upside_down" ] || { echo "the guest's disk is wrong"; exit 1; }
[ $mode = client ] || exit 0
grep -q "^guest: restarts" $work/console || { echo "the guest did not restart"; exit 1; }
sent=$(sha256sum <$work/sent)
echo "host: the network brought $sent"
[ "$sent" = "$upside_down" ] || { echo "what the guest sent is wrong"; exit 1; }
