# A Linux guest with two vCPUs works while it goes from one engine to another and back, some dozens of times; the longest gap that its own
# clock saw is printed. An upgrade of a VM whose process is stopped, or traced by somebody who is; two at once; one to an engine that is not
# there; one asked for by somebody who may have no memory; of a VM with dirty rings, and of a guest of Hyper-V's; each of them is killed in the
# middle of another. What an operator would do hsavectl does; what races with something is written to the files.
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
operator() { hsavectl upgrade --vm $(file $vm/pid) --to $1; }
# To one engine and the other, $1 times each; what comes of it is kept in /tmp/storm, and how often the VM had been handed over by then.
storm() {
    for round in $(seq $1); do
        for engine in hsave_0_2 kvm_amd; do
            if to $engine 2>/tmp/said.$1; then echo "done $(file $vm/upgrades)"; else echo "failed: $(file /tmp/said.$1)"; fi
            [ -d $vm ] || return 0
        done
    done >>/tmp/storm 2>/dev/null
}
# What the storms came to, since the VM had been handed over $2 times: handed over to the engine that it is in it stays, without a word.
came_to() {
    times=$(($(sed -n 's/^done //p' /tmp/storm | sort -n | tail -n 1) - $2))
    echo "host: $1: handed over $times times, $(grep -c failed /tmp/storm) refused"
    sed -n 's/^failed: .*write error: /  /p' /tmp/storm | sort | uniq -c
    rm /tmp/storm
    [ $times -gt 0 ] || exit 22
}
# Killed in the middle of it.
killed() {
    grep WRONG /tmp/$1 && exit 14
    before=$(file $vm/upgrades)
    storm 10000 & upgrades=$!
    for second in $(seq $((60 * ${SLOW:-1}))); do
        [ $(grep -c done /tmp/storm) -ge 3 ] && break
        sleep 1
    done
    sleep 0.$2
    kill -9 $process
    wait $process $upgrades
    [ -z "$(ls $d/vms)" ] || exit 17
    came_to "killed $1" $before
} 2>/dev/null

# Its first word about its clock is of its own start.
works="longest gap" guest a
longest=0
for n in $(seq 20); do
    for engine in hsave_0_2 kvm_amd; do
        operator $engine >/tmp/said || { cat /tmp/said; exit 4; }
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
case $(file $vm/error) in "there is no such engine"*) ;; *) exit 10 ;; esac
operator nobody 2>/dev/null && exit 10
is_in kvm_amd || exit 11
# Its process is stopped; then each of its threads at its next system call, by a tracer that is stopped itself.
kill -STOP $process && sleep 1
operator hsave_0_2 && is_in hsave_0_2 && kill -CONT $process && goes_on a || exit 12
strace -f -p $process -o /dev/null 2>/dev/null & tracer=$!
sleep 2
kill -STOP $tracer && sleep 1
operator kvm_amd && operator hsave_0_2 && is_in hsave_0_2 || { file $vm/error; exit 20; }
kill -CONT $tracer && kill $tracer && wait $tracer
goes_on a || exit 21
# Two at once, while an engine tries to go.
before=$(file $vm/upgrades)
storm 10 & one=$!
storm 11 & other=$!
gone=0
for n in $(seq 20); do rmmod hsave_0_2 2>/dev/null && gone=$((gone + 1)) && insmod /modules/hsave_0_2.ko; done
wait $one $other
came_to "two at once, and the engine went $gone times" $before
goes_on a && operator kvm_amd && is_in kvm_amd || exit 13
# Who asks may have no more memory, and is made to wait for what he has: that is nothing to the VM, and nobody is killed.
poor=/cgroup/poor
mkdir -p /cgroup && mount -t cgroup2 none /cgroup && echo +memory >/cgroup/cgroup.subtree_control && mkdir $poor || exit 23
mkfifo /tmp/ask /tmp/answer
# Open at first, so that nothing but the upgrade would take memory.
sh -c 'echo $$ >'$poor'/cgroup.procs; exec 3>'$vm'/upgrade 4</tmp/ask 5>/tmp/answer 2>&5
    while read -r engine <&4; do echo $engine >&3 && echo done >&5; done' & asks=$!
exec 4>/tmp/ask 5</tmp/answer
ask() { echo $1 >&4 && read -r answer <&5; }
ask nobody
# What the kernel has charged to it in advance goes back.
echo 0 >$poor/memory.high && sleep 1
echo $(($(file $poor/memory.current) + 32768)) >$poor/memory.max
before=$(file $poor/memory.current)
ask hsave_0_2
echo "host: asked for by who has no memory: $answer, pause $(($(file $vm/pause_ns) / 1000)) us, charged $(($(file $poor/memory.current) - before))"
[ "$answer" = done ] && is_in hsave_0_2 && [ $(file $vm/pause_ns) -lt $((1000000000 * ${SLOW:-1})) ] || exit 24
grep -q "^oom_kill 0" $poor/memory.events && goes_on a || { cat $poor/memory.events; exit 25; }
echo max >$poor/memory.max && echo max >$poor/memory.high
ask kvm_amd
[ "$answer" = done ] && is_in kvm_amd || exit 26
exec 4>&- 5<&-
wait $asks
killed a 1
# Dirty rings go along.
works="count 2" guest b ,dirty-ring-size=4096
operator hsave_0_2 && is_in hsave_0_2 && operator kvm_amd && goes_on b || exit 15
killed b 2
# A guest of Hyper-V's, whose time, timers and interrupts are those.
CPU=host,hv_relaxed,hv_vpindex,hv_time,hv_vapic,hv_runtime,hv_synic,hv_stimer,hv_tlbflush,hv_ipi works="count 2" guest h
for n in $(seq 5); do operator hsave_0_2 && operator kvm_amd || { file $vm/error; exit 19; }; done
is_in kvm_amd && goes_on h || exit 16
killed h 3
rmmod hsave_0_2 || exit 18
