#!/bin/busybox sh
# The real init behind `exitlog`, or /init itself. What stands behind `--` on the kernel's command
# line are steps, done in order; the machine is powered off at the end.
b=/bin/busybox
say() { echo "exitvisor-guest: $*"; }
# Tells what a command said and how it ended.
try() {
    say "+ $*"
    "$@" 2>&1
    say "= $?"
}
# What the module said when it was loaded: `quiet` keeps it from the console.
told() { $b dmesg | $b grep -o 'exitlog: .*'; }
# Every leaf that Debian's `cpuid` knows, by the kernel's driver, on CPU 0.
leaves() { /usr/bin/cpuid -k -1 -r; }

# `exitlog` may have mounted them.
[ -e /proc/self ] || $b mount -t proc proc /proc
[ -e /sys/kernel ] || $b mount -t sysfs sysfs /sys
[ -e /dev/null ] || $b mount -t devtmpfs devtmpfs /dev
say user space
for step in "$@"; do
    say "step $step"
    case "$step" in
    idle) exec $b sleep 86400 ;;
    shell) $b sh ;;
    # For the `exitlog` that was init before us, and prints beside us.
    wait) while $b pidof exitlog >/dev/null; do $b sleep 0.05; done ;;
    table) try /exitlog ;;
    json) try /exitlog --json --every 50ms --count 3 ;;
    page) try /exitlog --json --from page ;;
    both) try /exitlog --json --from both --count 2 --every 10ms ;;
    leaves) try /exitlog --json --from leaves ;;
    gate)
        try $b insmod /modules/cpuid.ko
        leaves >/tmp/before
        try /exitlog gate-kernel
        leaves >/tmp/after
        try $b diff /tmp/before /tmp/after
        try /usr/bin/cpuid -k -1 -l 0x4FFFFFFF
        try /usr/bin/cpuid -k -1 -l 0x4FFFFFFD -s 48
        try /usr/bin/cpuid -1 -l 0x4FFFFFFF
        try /exitlog --brief
        try /exitlog gate-kernel
        try /exitlog ungate-kernel
        try /exitlog ungate-kernel
        try /usr/bin/cpuid -k -1 -l 0x4FFFFFFF
        ;;
    module)
        try $b insmod /modules/exitlog.ko
        try told
        try $b cat /proc/exitlog
        try $b cat /proc/exitlog
        try $b rmmod exitlog
        ;;
    abuse)
        for what in garbage unmapped elsewhere slots; do try /abuse $what; done
        try /abuse fill
        try /exitlog --brief
        try /exitlog gate-kernel
        try $b insmod /modules/exitlog.ko
        try /abuse free
        try /abuse nobody
        # As an exitlog that was killed would leave it.
        try /abuse left
        try /exitlog --brief
        try /abuse slots
        ;;
    *) say "no such step: $step" ;;
    esac
done
say "$($b uname -r), $($b nproc) CPUs"
exec $b poweroff -f
