# What makes a guest of a bootstrapped Debian. Run by mmdebstrap, outside of it, with its root as $1.
set -eu
root=$1
in_root() { chroot "$root" "$@"; }

# Nobody reads them here.
rm -rf "$root"/usr/share/doc "$root"/usr/share/info "$root"/usr/share/lintian \
    "$root"/usr/share/locale "$root"/usr/share/man
# Character sets that no program asks for, and what apt and dpkg leave behind.
rm -rf "$root"/usr/lib/x86_64-linux-gnu/gconv "$root"/var/cache/* "$root"/var/log/* \
    "$root"/var/lib/apt/lists/* "$root"/var/lib/dpkg/*-old

# It is this machine, not the one that it was made on. An empty id is filled in by the first boot,
# which is no "first boot" to systemd then, with all its questions.
echo exitvisor >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 exitvisor\n::1 localhost\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
# Checked at every boot, and then mounted to be written to.
echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
# root logs in without a password; nobody else can reach this machine's consoles.
in_root passwd --quiet --delete root

# The virtio NIC, if there is one. No DHCP: nobody would answer.
cat >"$root/etc/systemd/network/10-virtio.network" <<'END'
[Match]
Driver=virtio_net

[Network]
DHCP=no
LinkLocalAddressing=no
IPv6AcceptRA=no
Address=10.42.0.2/24
Gateway=10.42.0.1
END
in_root systemctl --quiet enable systemd-networkd.service
# A login on hvc0 and ttyS0 comes by itself, where there is such a console
# (systemd-getty-generator); there is no screen. The rest is work for machines that stay up for days.
in_root systemctl --quiet mask getty@tty1.service systemd-networkd-wait-online.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer
# In memory: a journal of its own for each boot would fill the disk.
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/volatile.conf"

# The initramfs brings it.
ln -s /run/exitvisor/exitlog "$root/usr/local/bin/exitlog"
