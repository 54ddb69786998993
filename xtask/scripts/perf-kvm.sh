# What perf and trace-cmd make of a guest's exits: kinds and how many of each, without times.
export LD_LIBRARY_PATH=/observe/lib PATH=/observe:$PATH
mount -t tracefs tracefs /sys/kernel/tracing
cd /tmp
perf kvm stat record -a -o perf.data /payload/trace plain >/dev/null 2>said || { cat said; exit 1; }
perf kvm -i perf.data stat report --event=vmexit >report 2>&1 || { cat report; exit 2; }
# Host interrupts come when they come.
awk '$2 ~ /^[0-9]+$/ && $1 != "interrupt" && $1 != "nmi" { print "perf " $1 " " $2 }' report | sort
grep -q '^perf' <<EOF || { cat report; exit 3; }
$(awk '$2 ~ /^[0-9]+$/ { print "perf " $1 }' report)
EOF
for event in mmio ioport; do
    perf kvm -i perf.data stat report --event=$event 2>/dev/null | awk -v event=$event '$2 ~ /^[0-9]+$/ { print event " " $1 " " $2 }' | sort
done
trace-cmd record -q -e kvm:kvm_exit -e kvm:kvm_msr -o trace.dat /payload/trace plain >/dev/null 2>&1 || exit 4
trace-cmd report -i trace.dat 2>/dev/null | sed -n 's/.*kvm_msr: */trace-cmd /p' | sort | uniq -c
