# A Linux guest with two vCPUs works while it goes from one engine to another and back, some dozens of times; the longest gap that its own
# clock saw is printed. An upgrade of a VM whose process is stopped, or traced by somebody who is; two at once; one to an engine that is not
# there; of a VM with dirty rings, and of a guest of Hyper-V's; each of them is killed in the middle of another.
#: kernels 6.12
#: engines
#: timeout 600
#: seconds 110
d=/sys/kernel/hsave
insmod /modules/hsave_0_2.ko || exit 2
# What a file of one line says. Not by `cat`: host and guest have the same busybox, and one that has just started has the same in its
# registers here and there, which the strict processor takes for the guest's.
file() { read -r it <$1; echo "$it"; }
# A guest of this name, until it works.
guest() {
    CPU=$CPU upgrade-guest $2 >/tmp/$1 2>&1 &
    process=$!
    for second in $(seq $((120 * ${SLOW:-1}))); do
        grep -q "$works" /tmp/$1 && break
        kill -0 $process || break
        sleep 1
    done
    grep -q "$works" /tmp/$1 || { cat /tmp/$1; exit 3; }
    vm=$(echo $d/vms/$process-*)
    vm=${vm%% *}
}
counted() { grep -c "guest: count" /tmp/$1; }
# Is the VM in that engine, and does each engine know how many it has?
is_in() {
    [ "$(file $vm/engine)" = $1 ] && [ $(file $d/engines/$1/vms) = 1 ] || { echo "not in $1"; tail -n 3 /tmp/a; return 1; }
}
goes_on() {
    before=$(counted $1)
    for second in $(seq $((60 * ${SLOW:-1}))); do
        [ $(counted $1) -gt $((before + 3)) ] && return
        sleep 1
    done
    echo "the guest does not go on: $(file $vm/error)"; tail -n 5 /tmp/$1
    return 1
}
to() { echo $1 >$vm/upgrade; }
# Killed in the middle of it.
killed() {
    grep -q WRONG /tmp/$1 && { grep WRONG /tmp/$1; exit 14; }
    while to hsave_0_2 && to kvm_amd; do :; done 2>/dev/null & upgrades=$!
    sleep 0.$2
    kill -9 $process
    wait $process
    wait $upgrades
    [ -z "$(ls $d/vms)" ] || exit 17
} 2>/dev/null

# Its first word about its clock is of its own start.
works="longest gap" guest a
longest=0
for n in $(seq 20); do
    for engine in hsave_0_2 kvm_amd; do
        to $engine || { file $vm/error; exit 4; }
        is_in $engine || exit 5
        pause=$(file $vm/pause_ns)
        [ $pause -gt $longest ] && longest=$pause
    done
done
[ $(file $vm/upgrades) = 40 ] || exit 6
goes_on a || exit 7
echo "host: longest pause $((longest / 1000)) us"
words=$(grep -c "longest gap" /tmp/a)
for second in $(seq $((60 * ${SLOW:-1}))); do
    [ $(grep -c "longest gap" /tmp/a) -gt $words ] && break
    sleep 1
done
grep -o "guest: longest gap.*" /tmp/a | tail -n 1
# An engine without VMs goes, and comes back, as soon as it is not the one that QEMU's open /dev/kvm holds.
to hsave_0_2 && echo hsave_0_2 >$d/current && rmmod kvm_amd && insmod /modules/kvm-amd.ko || exit 8
[ $(file $d/engines/kvm_amd/vms) = 0 ] && to kvm_amd && echo kvm_amd >$d/current || exit 9
rmmod hsave_0_2 && insmod /modules/hsave_0_2.ko || exit 9
to nobody 2>/dev/null && exit 10
is_in kvm_amd || exit 11
# Its process is stopped; then each of its threads at its next system call, by a tracer that is stopped itself.
kill -STOP $process && sleep 1
to hsave_0_2 && is_in hsave_0_2 && kill -CONT $process && goes_on a || exit 12
strace -f -p $process -o /dev/null 2>/dev/null & tracer=$!
sleep 2
kill -STOP $tracer && sleep 1
to kvm_amd && to hsave_0_2 && is_in hsave_0_2 || { file $vm/error; exit 20; }
kill -CONT $tracer && kill $tracer && wait $tracer
goes_on a || exit 21
# Two at once, while an engine tries to go.
for n in $(seq 10); do to kvm_amd; to hsave_0_2; done 2>/dev/null & one=$!
for n in $(seq 10); do to hsave_0_2; to kvm_amd; done 2>/dev/null & other=$!
for n in $(seq 10); do rmmod hsave_0_2 2>/dev/null && insmod /modules/hsave_0_2.ko; done
wait $one $other
insmod /modules/hsave_0_2.ko 2>/dev/null
goes_on a && to kvm_amd && is_in kvm_amd || exit 13
killed a 1
# Dirty rings go along.
works="count 2" guest b ,dirty-ring-size=4096
to hsave_0_2 && is_in hsave_0_2 && to kvm_amd && goes_on b || exit 15
killed b 2
# A guest of Hyper-V's, whose time, timers and interrupts are those.
CPU=host,hv_relaxed,hv_vpindex,hv_time,hv_vapic,hv_runtime,hv_synic,hv_stimer,hv_tlbflush,hv_ipi works="count 2" guest h
for n in $(seq 5); do to hsave_0_2 && to kvm_amd || { file $vm/error; exit 19; }; done
is_in kvm_amd && goes_on h || exit 16
killed h 3
rmmod hsave_0_2 || exit 18
