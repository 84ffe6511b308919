#!/bin/busybox sh
# The initramfs of a Debian on a virtio disk: loads the drivers, mounts the root file system that the
# kernel's command line names, and hands over to its init.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $b insmod "/modules/$module"
done </modules/order
# A console that has come with its driver was not there when the kernel opened one for us.
[ -c /dev/console ] && exec </dev/console >/dev/console 2>&1

root=/dev/vda how=ro init=/sbin/init
for word in $($b cat /proc/cmdline); do
    case "$word" in
    root=*) root=${word#root=} ;;
    ro | rw) how=$word ;;
    init=*) init=${word#init=} ;;
    esac
done
# Ends with a panic, which the VMM tells.
die() {
    echo "exitvisor-guest: $*"
    $b sleep 0.1
    exit 1
}
# Devices are found while modules are loaded; one that is not is not there.
[ -b "$root" ] || die "no root file system: there is no $root (a disk is needed: --disk FILE)"
$b mount -t ext4 -o "$how" "$root" /root || die "no root file system: $root is no ext4"
# A link to be followed from there cannot be followed from here.
[ -h "/root$init" ] || [ -x "/root$init" ] || die "no root file system: $root holds no $init"

# What the guest asks its exits with. systemd keeps a /run that is there.
$b mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
$b mkdir /run/exitvisor
$b cp /exitlog /run/exitvisor/exitlog
for folder in dev proc run sys; do
    $b mount --move "/$folder" "/root/$folder"
done
exec $b switch_root /root "$init"
